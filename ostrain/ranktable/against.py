"""A table beside the nodes it is about: what it says of them that is not so."""

from __future__ import annotations

from collections.abc import Sequence

from ostrain.ranktable.check import Report, check_subnets
from ostrain.ranktable.convert import by_words
from ostrain.ranktable.facts import DeviceFacts, NodeFacts
from ostrain.ranktable.findings import Findings
from ostrain.ranktable.servers import Device, Server, named
from ostrain.ranktable.subnets import Network, network_of


def check_against(report: Report, nodes: Sequence[NodeFacts]) -> None:
    """Adds to the report's findings: devices that are not there, other addresses, wrong subnets by real netmasks."""
    known = by_words(nodes)
    found: list[dict[int, Network]] = []
    for server in report.servers:
        facts = known.get(server.server_id or "") or known.get(str(server.host_ip or ""))
        if facts is None:
            text = f"no facts are known of server {server.name}"
            report.findings.add("not_the_nodes", server.path, text, level="warning",
                                next_step="name its node in the inventory, or add its facts")  # fmt: skip
            found.append({})
            continue
        for device in server.devices:
            _compare(report.findings, report.servers, device, facts)
        found.append(_networks(server, facts))
    check_subnets(report.findings, report.servers, found)


def _compare(findings: Findings, servers: Sequence[Server], device: Device, facts: NodeFacts) -> None:
    if device.device_id is None:
        return
    real = facts.devices.get(device.device_id)
    is_there = real is not None if facts.present is None else device.device_id in facts.present
    if real is None or not is_there:
        text = f"{named(servers, device)} is not there: node {facts.name} has no such device"
        findings.add("not_the_nodes", (*device.path, "device_id"), text)
        return
    for ip in device.ips:
        nic = real.addresses.get(ip.version)
        if nic is not None and nic.ip != ip:
            text = f"device_ip {ip} of {named(servers, device)}: the card has {nic.ip}"
            findings.add("not_the_nodes", (*device.path, "device_ip"), text)
    _compare_pod(findings, servers, device, real)


def _compare_pod(findings: Findings, servers: Sequence[Server], device: Device, real: DeviceFacts) -> None:
    if device.super_device_id is None or real.pod is None or real.pod.super_device_id == device.super_device_id:
        return
    text = f"super_device_id {device.super_device_id} of {named(servers, device)}: "
    text += f"npu-smi says {real.pod.super_device_id}"
    findings.add("not_the_nodes", (*device.path, "super_device_id"), text)


def _networks(server: Server, facts: NodeFacts) -> dict[int, Network]:
    """The networks of a server's devices, by the netmasks that the node knows."""
    found = {}
    for device in server.devices:
        real = facts.devices.get(device.device_id) if device.device_id is not None else None
        nic = real.addresses.get(device.ips[0].version) if real and device.ips else None
        if device.device_id is not None and nic is not None and nic.prefix is not None:
            found[device.device_id] = network_of(device.ips[0], nic.prefix)
    return found

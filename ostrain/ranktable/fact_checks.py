"""What is wrong with nodes as they are, before any table is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ostrain.ranktable.facts import DeviceFacts, NodeFacts
from ostrain.ranktable.rules import Level
from ostrain.ranktable.subnets import outliers

Picked = tuple[NodeFacts, Sequence[DeviceFacts]]


@dataclass(frozen=True)
class Complaint:
    """Something about a node (empty: about all). error: no table can be made."""

    level: Level
    node: str
    what: str
    why: str = ""
    next_step: str = ""

    def __str__(self) -> str:
        lines = [f"{self.level}: {self.what}"]
        where = f"node {self.node}" if self.node else ""
        for label, text in (("where", where), ("why", self.why), ("next", self.next_step)):
            if text:
                lines.append(f"  {label}: {text}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        return {"level": self.level, "node": self.node, "what": self.what, "why": self.why, "next": self.next_step}


def check_facts(picked: Sequence[Picked], version: str, ip_version: int) -> list[Complaint]:
    """Addresses missing or at odds, cards that are ill, wrong subnets and gateways."""
    if version == "2.0":
        return [complaint for facts, _ in picked for complaint in _root_info(facts)]
    found = _addresses(picked, version, ip_version)
    for facts, devices in picked:
        for device in devices:
            found += _device(facts, device, version, ip_version)
    return found + _subnets(picked, ip_version)


def _root_info(facts: NodeFacts) -> list[Complaint]:
    if facts.root_info is not None:
        return []
    text = "/etc/hccl_rootinfo.json " + ("cannot be read" if facts.root_info_problem else "is not there")
    step = "it comes with the 950's driver tools; mount it into containers"
    return [Complaint("error", facts.name, text, facts.root_info_problem, step)]


def _addresses(picked: Sequence[Picked], version: str, ip_version: int) -> list[Complaint]:
    """All devices have an address; on one server (or inside one super pod) also none will do."""
    every = [(facts, device) for facts, devices in picked for device in devices]
    lacking = [(facts, device) for facts, device in every if ip_version not in device.addresses]
    pods = {device.pod.super_pod_id for _, device in every if device.pod}
    groups = len(pods) if version == "1.2" else len(picked)
    if lacking and len(lacking) == len(every) and groups < 2:
        text = "no device has an address; the table is made without, as a single server or super pod may be"
        return [Complaint("warning", "", text, next_step="see `hccn_tool -i 0 -ip -g`, `cat /etc/hccn.conf`")]
    return [_no_address(facts, device, ip_version) for facts, device in lacking]


def _no_address(facts: NodeFacts, device: DeviceFacts, ip_version: int) -> Complaint:
    others = [f"an IPv{version} one: {nic.ip}" for version, nic in device.addresses.items()]
    said = f'hccn_tool said "{device.no_address}"' if device.no_address else "hccn_tool and /etc/hccn.conf name none"
    step = f"hccn_tool -i {device.device_id} -ip -s address A netmask M"
    if others:
        said, step = f"it has {others[0]}", "make the table with --ipv6, or without it"
    return Complaint("error", facts.name, f"device {device.device_id} has no IPv{ip_version} address", said, step)


def _device(facts: NodeFacts, device: DeviceFacts, version: str, ip_version: int) -> list[Complaint]:
    found = []
    number, name = device.device_id, facts.name
    nic, conf = device.addresses.get(ip_version), device.conf.get(ip_version)
    if nic is not None and conf is not None and nic.ip != conf.ip:
        text = f"device {number} has {nic.ip}, but /etc/hccn.conf says {conf.ip}; the table has what the card has"
        why = "the file is applied at the next boot, and the table is wrong then"
        found.append(Complaint("warning", name, text, why, f"hccn_tool -i {number} -cfg recovery, or mend the file"))
    if nic is not None and nic.network is not None and nic.gateway is not None and nic.gateway not in nic.network:
        text = f"the gateway {nic.gateway} of device {number} is not in its subnet {nic.network}"
        step = f"hccn_tool -i {number} -gateway -s gateway G"
        found.append(Complaint("error", name, text, "ranks behind it are never reached (EI0006)", step))
    if device.is_ill and device.chip is not None:
        text = f"the health of device {number} is {device.chip.health}"
        found.append(Complaint("warning", name, text, next_step=f"npu-smi info -t health -i {device.chip.npu}"))
    if version == "1.2" and device.pod is None:
        npu, chip = (device.chip.npu, device.chip.chip) if device.chip else (number // 2, number % 2)
        text = f"the place of device {number} in its super pod is not known"
        step = f"npu-smi info -t spod-info -i {npu} -c {chip}, or --version 1.0"
        found.append(Complaint("error", name, text, "npu-smi printed no SDID and Super Pod ID", step))
    return found


def _subnets(picked: Sequence[Picked], ip_version: int) -> list[Complaint]:
    """Devices out of the others' network; a gateway may lead there."""
    networks = []
    for _, devices in picked:
        nics = {device.device_id: device.addresses.get(ip_version) for device in devices}
        networks.append({number: nic.network for number, nic in nics.items() if nic and nic.network})
    found = []
    for outlier in outliers(networks):
        facts, devices = picked[outlier.server]
        device = next(device for device in devices if device.device_id == outlier.device)
        gateway = device.addresses[ip_version].gateway
        what = "the node's devices lie" if outlier.whole_server else f"device {outlier.device} lies"
        text = f"{what} in {outlier.network}, the devices they talk to in {outlier.expected}"
        soft = outlier.whole_server or gateway is not None
        why = f"its gateway {gateway} may lead there" if gateway is not None else "without a gateway: EI0006"
        step = f"hccn_tool -i {outlier.device} -ip -s address A netmask M, or make sure of the route"
        found.append(Complaint("warning" if soft else "error", facts.name, text, why, step))
    return found

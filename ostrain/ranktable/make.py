"""From facts of nodes to a table, with everything that stands in the way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ostrain.ranktable.check import Expected, check_data
from ostrain.ranktable.fact_checks import Complaint, check_facts
from ostrain.ranktable.facts import DeviceFacts, NodeFacts
from ostrain.ranktable.findings import Finding
from ostrain.ranktable.locate import Path
from ostrain.ranktable.products import Product
from ostrain.ranktable.text import listed


@dataclass(frozen=True)
class Wanted:
    """What to make. version: empty = by the product; devices: physical ids of every node, None = all it has."""

    version: str = ""
    product: Product | None = None
    devices: tuple[int, ...] | None = None
    ip_version: int = 4
    backup: bool = False
    per_node: int | None = None


@dataclass
class Chosen:
    """A node and those of its devices that take part, in the order of their ranks."""

    facts: NodeFacts
    devices: list[DeviceFacts]

    @property
    def pod(self) -> str | None:
        return next((device.pod.super_pod_id for device in self.devices if device.pod), None)


@dataclass
class Made:
    """A table's data, or None where ``complaints`` hold errors."""

    data: dict[str, Any] | None
    complaints: list[Complaint] = field(default_factory=list)


def make(nodes: Sequence[NodeFacts], wanted: Wanted, own: dict[str, Sequence[int]] | None = None) -> Made:
    """A table of all nodes, ranks in the order given (1.2: super pod by super pod), or what is wrong.

    own: node -> physical ids, where nodes differ (an inventory's ``devices``).
    """
    complaints: list[Complaint] = []
    product = wanted.product or _common_product(nodes, complaints)
    version = wanted.version or _version(nodes, product, complaints)
    chosen = [_choose(facts, wanted, (own or {}).get(facts.name), complaints) for facts in nodes]
    if version == "1.2":
        chosen = _by_pod(chosen)
    complaints += check_facts([(one.facts, one.devices) for one in chosen], version, wanted.ip_version)
    if any(complaint.level == "error" for complaint in complaints):
        return Made(None, complaints)
    data = _DATA[version](chosen, wanted)
    report = check_data(data, Expected(product, wanted.per_node))
    owners = [one.facts.name for one in chosen for _ in one.devices]
    complaints += [_complaint(finding, chosen, owners) for finding in report.findings.all]
    return Made(data if report.good else None, complaints)


def _common_product(nodes: Iterable[NodeFacts], complaints: list[Complaint]) -> Product | None:
    found = {facts.product.name: facts for facts in nodes if facts.product}
    if len(found) > 1:
        text = ", ".join(f"{facts.name} has {name}" for name, facts in found.items())
        complaints.append(
            Complaint("error", "", f"nodes of different products: {text}", next_step="make a table of one kind of node")
        )
    return next((facts.product for facts in found.values()), None)


def _version(nodes: Sequence[NodeFacts], product: Product | None, complaints: list[Complaint]) -> str:
    if product is None:
        only_root = all(facts.root_info and not any(d.addresses for d in facts.devices.values()) for facts in nodes)
        return "2.0" if nodes and only_root else "1.0"
    if product.version == "1.2" and not all(any(d.pod for d in facts.devices.values()) for facts in nodes):
        text = "no super pod is known of every node: a table of version 1.0, without HCCS between servers"
        complaints.append(Complaint("warning", "", text, next_step="see `npu-smi info -t spod-info -i 0 -c 0`"))
        return "1.0"
    return product.version


def _choose(facts: NodeFacts, wanted: Wanted, own: Sequence[int] | None, complaints: list[Complaint]) -> Chosen:
    """The devices asked for. A missing one is a complaint."""
    there = set(facts.devices) if facts.present is None else set(facts.present)
    if facts.root_info is not None and not there:
        there = _root_devices(facts)
    ids = wanted.devices if wanted.devices is not None else own if own is not None else sorted(there)
    missing = [number for number in ids if number not in there]
    for number in missing:
        by = "npu-smi and /dev list" if facts.present is not None else "known are"
        why = f"{by} {listed(sorted(there)) or 'none'}"
        text = f"device {number} is missing"
        complaints.append(Complaint("error", facts.name, text, why, "choose others with --devices, or mend the card"))
    unused = sorted(there - set(ids)) if own is not None and wanted.devices is None else []
    if unused:
        text = f"device {listed(unused)} takes no part: the inventory's `devices` does not list it"
        complaints.append(Complaint("note", facts.name, text, next_step="correct `devices` if it should"))
    if not ids:
        text = "no device is known"
        why = "neither npu-smi, /dev, hccn_tool nor /etc/hccn.conf names one"
        complaints.append(Complaint("error", facts.name, text, why, "is it a node with NPUs, its driver loaded?"))
    return Chosen(facts, [facts.devices.get(number, DeviceFacts(number)) for number in ids if number not in missing])


def _root_devices(facts: NodeFacts) -> set[int]:
    data = facts.root_info.data if facts.root_info else None
    entries = data.get("rank_list") if isinstance(data, dict) else None
    found = (entry.get("device_id") for entry in entries or () if isinstance(entry, dict))
    return {number for number in found if isinstance(number, int) and not isinstance(number, bool)}


def _by_pod(chosen: list[Chosen]) -> list[Chosen]:
    order: dict[str | None, int] = {}
    for one in chosen:
        order.setdefault(one.pod, len(order))
    return sorted(chosen, key=lambda one: order[one.pod])


def _version10(chosen: Sequence[Chosen], wanted: Wanted) -> dict[str, Any]:
    """Keys in the order of hccl_tools.py."""
    servers, rank = [], 0
    for one in chosen:
        devices = []
        for device in one.devices:
            devices.append({"device_id": str(device.device_id), **_ip(device, wanted), "rank_id": str(rank)})
            rank += 1
        servers.append({"server_id": one.facts.server_id, "device": devices, "host_nic_ip": "reserve"})
    return {"version": "1.0", "server_count": str(len(servers)), "server_list": servers, "status": "completed"}


def _ip(device: DeviceFacts, wanted: Wanted) -> dict[str, str]:
    nic = device.addresses.get(wanted.ip_version)
    return {"device_ip": str(nic.ip)} if nic else {}


def _version12(chosen: Sequence[Chosen], wanted: Wanted) -> dict[str, Any]:
    servers, rank = [], 0
    pods: dict[str, list[dict[str, str]]] = {}
    for one in chosen:
        devices = []
        for device in one.devices:
            entry = {"device_id": str(device.device_id)}
            if device.pod is not None:
                entry["super_device_id"] = str(device.pod.super_device_id)
            entry |= _ip(device, wanted)
            if wanted.backup:
                entry |= _backup(one, device, wanted)
            devices.append({**entry, "rank_id": str(rank)})
            rank += 1
        host = {"host_ip": str(one.facts.host_ip)} if one.facts.host_ip is not None else {}
        servers.append({"server_id": one.facts.server_id, **host, "device": devices})
        pods.setdefault(one.pod or "", []).append({"server_id": one.facts.server_id})
    listing = [{"super_pod_id": pod, "server_list": members} for pod, members in pods.items()]
    return {
        "version": "1.2",
        "status": "completed",
        "server_count": str(len(servers)),
        "server_list": servers,
        "super_pod_list": listing,
    }


def _backup(one: Chosen, device: DeviceFacts, wanted: Wanted) -> dict[str, str]:
    """The other die's card, which takes over when the own one fails."""
    other = next((entry for entry in one.devices if entry.device_id == device.device_id ^ 1), None)
    nic = other.addresses.get(wanted.ip_version) if other else None
    return {"backup_device_ip": str(nic.ip)} if nic else {}


def _version20(chosen: Sequence[Chosen], wanted: Wanted) -> dict[str, Any]:
    """The nodes' own ``hccl_rootinfo.json`` one after the other, with ranks."""
    ranks: list[dict[str, Any]] = []
    for one in chosen:
        data = one.facts.root_info.data if one.facts.root_info else None
        entries = data.get("rank_list") if isinstance(data, dict) else None
        known = {
            entry["device_id"]: entry for entry in entries or () if isinstance(entry, dict) and "device_id" in entry
        }
        for device in one.devices:
            entry = {key: value for key, value in known.get(device.device_id, {}).items() if key != "rank_id"}
            ranks.append({"rank_id": len(ranks), **entry})
    return {"status": "completed", "version": "2.0", "rank_count": len(ranks), "rank_list": ranks}


_DATA = {"1.0": _version10, "1.2": _version12, "2.0": _version20}


def _complaint(finding: Finding, chosen: Sequence[Chosen], owners: Sequence[str]) -> Complaint:
    """A finding about the table, told of the node it is about."""
    words = ", ".join(finding.rule.codes[:1])
    why = f"HCCL would refuse the table: {words}" if words and finding.level == "error" else ""
    return Complaint(finding.level, _node_of(finding.path, chosen, owners), finding.message, why, finding.next_step)


def _node_of(path: Path, chosen: Sequence[Chosen], owners: Sequence[str]) -> str:
    number = path[1] if len(path) > 1 else None
    if path[:1] == ("server_list",) and isinstance(number, int):
        return chosen[number].facts.name
    return owners[number] if path[:1] == ("rank_list",) and isinstance(number, int) else ""

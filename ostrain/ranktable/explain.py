"""A table in words: who is where, how ranks meet, what each process is started with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ostrain.ranktable.check import Report
from ostrain.ranktable.groups import instance_order
from ostrain.ranktable.servers import Server
from ostrain.ranktable.text import listed
from ostrain.ranktable.version2 import Rank

_TITLES = {
    "1.0": "Atlas 800 (910A), 800T A2 / 900 A2 (910B), or A3 without super pods",
    "1.2": "Atlas 900 A3, super pods",
    "2.0": "Ascend 950",
    "group": "the old ModelArts format, without ranks",
}
_KNOWN = {
    "version", "status", "server_count", "server_list", "super_pod_list", "rank_count", "rank_list", "detour",
    "group_count", "group_list",
}  # fmt: skip
DEFAULT_PORT = "16666"


@dataclass(frozen=True)
class Row:
    """A rank and where it is. rank: None in the old ModelArts format."""

    rank: int | None
    server: str
    device: int | str | None
    address: str
    super_pod: str = ""
    super_device: int | None = None


def rows(report: Report) -> list[Row]:
    """All ranks, by rank."""
    found = [*_of_servers(report), *map(_of_rank, report.ranks), *_of_groups(report)]
    return sorted(found, key=lambda row: row.rank if row.rank is not None else -1)


def _of_servers(report: Report) -> Iterator[Row]:
    for server in report.servers:
        pod = report.pods.get(server.server_id or "", "")
        for device in server.devices:
            ips = ",".join(map(str, device.ips))
            yield Row(device.rank_id, server.server_id or "?", device.device_id, ips, pod, device.super_device_id)


def _of_rank(rank: Rank) -> Row:
    addresses = []
    for level in rank.data.get("level_list") or ():
        listing = level.get("rank_addr_list") if isinstance(level, dict) else None
        addresses += [str(entry.get("addr")) for entry in listing or () if isinstance(entry, dict)]
    return Row(rank.rank_id, rank.server or "?", rank.device_id, ",".join(addresses))


def _of_groups(report: Report) -> Iterator[Row]:
    for instance in instance_order(report.instances):
        for device in instance.devices:
            yield Row(None, instance.server_id, device.get("device_id"), str(device.get("device_ip", "")))


def describe(report: Report, data: Any) -> dict[str, Any]:
    """Everything ``explain --json`` says."""
    ranks = rows(report)
    return {
        "version": report.kind,
        "product": _TITLES.get(report.kind or "", ""),
        "usable": report.good and report.kind != "group",
        "servers": len({row.server for row in ranks}),
        "ranks": [vars(row) for row in ranks],
        "super_pods": list(dict.fromkeys(row.super_pod for row in ranks if row.super_pod)),
        "not_read_by_hccl": not_read(data),
        "meeting": meeting(report),
    }


def not_read(data: Any) -> list[str]:
    """Keys at the top that HCCL passes over."""
    return sorted(str(key) for key in data if key not in _KNOWN) if isinstance(data, dict) else []


def headline(report: Report) -> str:
    count, servers = report.devices, report.nodes
    what = "device" if report.kind == "group" else "rank"
    size = f"{servers} server{'s' * (servers != 1)}, {count} {what}{'s' * (count != 1)}"
    version = f"version {report.kind}: " if report.kind != "group" else ""
    return f"{version}{_TITLES[report.kind or 'group']}; {size}"


def meeting(report: Report) -> list[str]:
    """How ranks reach each other, as HCCL goes by the table."""
    if report.kind == "2.0":
        layers = sorted({layer for rank in report.ranks for layer, _ in rank.layers if layer is not None})
        return [f"network layers {listed(layers)}: layer 0 by the node's topology file, the others as net_type says"]
    if report.kind == "group":
        return ["not at all: HCCL needs ranks; convert the table first"]
    lines = ["inside a server: over HCCS (PCIe where there is none)"]
    if report.kind == "1.2" and report.pods:
        lines.append("between servers of a super pod: over HCCS")
        if len(set(report.pods.values())) > 1:
            lines.append(f"between super pods: over RoCE, device_ip to device_ip, {_ports(report.servers)}")
    elif len(report.servers) > 1:
        lines.append(f"between servers: over RoCE, device_ip to device_ip, {_ports(report.servers)}")
    return lines


def _ports(servers: Sequence[Server]) -> str:
    ports = {str(device.data.get("device_port", DEFAULT_PORT)) for server in servers for device in server.devices}
    return "port " + ", ".join(sorted(ports)[:4])


def summary(report: Report) -> list[tuple[str, str, str, str, str]]:
    """A line a server: name, super pod, ranks, devices, first and last address."""
    groups: dict[str, list[Row]] = {}
    for row in rows(report):
        groups.setdefault(row.server, []).append(row)
    found = []
    for server, members in groups.items():
        ranks = sorted(row.rank for row in members if row.rank is not None)
        devices = [row.device for row in members]
        numbers = sorted(int(device) for device in devices if device is not None)
        ips = [row.address.partition(",")[0] for row in members if row.address]
        span = ips[0] if len(ips) == 1 else f"{ips[0]} … {ips[-1]}" if ips else "-"
        found.append((server, members[0].super_pod, listed(ranks) or "-", listed(numbers), span))
    return found


def starting(report: Report) -> list[str]:
    """What a process of the rank-table start is given."""
    if report.kind == "group":
        return []
    return [
        "RANK_TABLE_FILE=PATH: the absolute path, ending in .json, of the same table on every node",
        f"RANK_SIZE={report.devices}, RANK_ID=the rank, DEVICE_ID=its device; ASCEND_RT_VISIBLE_DEVICES not set",
        "msrun and mpirun negotiate without a table: unset RANK_TABLE_FILE there",
    ]

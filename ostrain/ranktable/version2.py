"""Checks of version 2.0 (Ascend 950): ranks with their addresses, network layer by network layer.

Bounds are those of HCCL's ``rank_table_info``, ``new_rank_info``, ``rank_level_info`` and ``address_info``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ostrain.ranktable.findings import quoted
from ostrain.ranktable.locate import Path
from ostrain.ranktable.ranks import check_numbers
from ostrain.ranktable.walk import Object, Walk, address

MAX_RANKS, MAX_ID, SPARE = 65536, 64, 64
MAX_LAYERS, MAX_ADDRESSES, MAX_PORTS = 8, 24, 16
NET_TYPES = ("TOPO_FILE_DESC", "CLOS", "1DMESH", "2DMESH", "A3_SERVER", "A2_AX_SERVER")
ADDRESS_TYPES = ("EID", "IPV4", "IPV6")
_EID = re.compile(r"[0-9a-fA-F]{32}\Z")
_PORT = re.compile(r"(\d+/\d+|d2h)\Z")


@dataclass
class Rank:
    """A rank as far as it could be read."""

    path: Path
    data: Object
    rank_id: int | None = None
    local_id: int | None = None
    device_id: int | None = None
    layers: list[tuple[int | None, str | None]] = field(default_factory=list)

    @property
    def server(self) -> str | None:
        """What tells its server: the instance of layer 0."""
        return self.layers[0][1] if self.layers else None

    @property
    def name(self) -> str:
        return f"rank {'?' if self.rank_id is None else self.rank_id}"


@dataclass
class _State:
    walk: Walk
    sizes: dict[tuple[int, str], tuple[int, str]] = field(default_factory=dict)
    owners: dict[tuple[str, str], str] = field(default_factory=dict)


def check_version2(walk: Walk, data: Object) -> list[Rank]:
    """Every rank, as far as it can be read."""
    state = _State(walk)
    ranks = [_rank(state, path, entry) for path, entry in walk.entries(data, (), "rank_list")]
    count = walk.integer(data, (), "rank_count", 1, MAX_RANKS, rule="rank_count")
    if count is not None and isinstance(data.get("rank_list"), list) and count != len(data["rank_list"]):
        text = f"rank_count is {count}, but rank_list holds {len(data['rank_list'])}"
        walk.findings.add("rank_count", ("rank_count",), text)
    detour = walk.text(data, (), "detour", needed=False)
    if detour not in (None, "", "true", "false"):
        walk.findings.add("type", ("detour",), f'detour is {quoted(detour)}, not "true" or "false"')
    given = [(rank.rank_id, (*rank.path, "rank_id"), _place(rank)) for rank in ranks if rank.rank_id is not None]
    check_numbers(walk.findings, given, len(ranks))
    _spares(walk, ranks)
    _unique_devices(walk, ranks)
    return ranks


def _place(rank: Rank) -> str:
    return f"device {'?' if rank.device_id is None else rank.device_id} of {quoted(rank.server or '?')}"


def _rank(state: _State, path: Path, data: Object) -> Rank:
    walk, rank = state.walk, Rank(path, data)
    rank.rank_id = walk.integer(data, path, "rank_id", 0, 2**31 - 1)
    rank.local_id = walk.integer(data, path, "local_id", 0, MAX_ID)
    rank.device_id = walk.integer(data, path, "device_id", 0, MAX_ID)
    for key in ("device_port", "host_port"):
        port = walk.integer(data, path, key, 1, 65535, needed=False, rule="port")
        walk.port_in_range(port, (*path, key))
    levels = walk.entries(data, path, "level_list")
    if len(levels) > MAX_LAYERS:
        walk.findings.add("length", (*path, "level_list"), f"level_list holds {len(levels)}; at most {MAX_LAYERS}")
    for number, (where, level) in enumerate(levels):
        rank.layers.append(_level(state, rank, where, level, rank.layers[-1][0] if number else -1))
    return rank


def _level(state: _State, rank: Rank, path: Path, data: Object, before: int | None) -> tuple[int | None, str | None]:
    walk = state.walk
    layer = walk.integer(data, path, "net_layer", 0, MAX_LAYERS - 1)
    instance = walk.name(data, path, "net_instance_id", 1024, "length")
    if layer is not None and before is not None and (layer <= before or (before < 0 < layer)):
        text = f"net_layer {layer} " + (f"after {before}" if before >= 0 else "comes first; 0 has to")
        walk.findings.add("level_order", (*path, "net_layer"), text)
    kind = walk.text(data, path, "net_type")
    wrong = kind not in NET_TYPES or (layer == 0 and kind != "TOPO_FILE_DESC")
    if kind is not None and wrong:
        choice = "TOPO_FILE_DESC" if layer == 0 else "TOPO_FILE_DESC or CLOS"
        text = f"net_type {quoted(kind)} of layer {layer}; {choice} is possible"
        walk.findings.add("net_type", (*path, "net_type"), text)
    walk.text(data, path, "net_attr", needed=False)
    addresses = walk.entries(data, path, "rank_addr_list")
    if len(addresses) > MAX_ADDRESSES:
        text = f"rank_addr_list holds {len(addresses)}; at most {MAX_ADDRESSES}"
        walk.findings.add("length", (*path, "rank_addr_list"), text)
    ports: dict[str, str] = {}
    for where, entry in addresses:
        _address(state, rank, where, entry, ports)
    if layer is not None and instance is not None:
        size, owner = state.sizes.setdefault((layer, instance), (len(addresses), rank.name))
        if size != len(addresses):
            text = f"{len(addresses)} addresses in {quoted(instance)}, {owner} has {size}"
            walk.findings.add("level_unequal", (*path, "rank_addr_list"), text, on_key=True)
    return layer, instance


def _address(state: _State, rank: Rank, path: Path, data: Object, ports: dict[str, str]) -> None:
    walk = state.walk
    kind = walk.text(data, path, "addr_type")
    text = walk.name(data, path, "addr", 256, "length")
    if kind is not None and kind not in ADDRESS_TYPES:
        walk.findings.add("address", (*path, "addr_type"), f"addr_type {quoted(kind)}; EID, IPV4 or IPV6 are possible")
    elif kind is not None and text is not None:
        if not _is(kind, text):
            walk.findings.add("address", (*path, "addr"), f"addr {quoted(text)} is no {kind}")
        owner = state.owners.setdefault((kind, text.lower()), rank.name)
        # The card of a host serves several NPUs; an NPU's own link serves one.
        if owner != rank.name and data.get("ports") != ["d2h"]:
            walk.findings.add("duplicate_ip", (*path, "addr"), f"addr {quoted(text)} is that of {owner}, too")
    _backups(walk, data, path, kind)
    plane = walk.text(data, path, "plane_id", needed=False)
    if plane is not None and len(plane) > 1024:
        walk.findings.add("length", (*path, "plane_id"), "plane_id is longer than 1024 characters")
    _ports(walk, data, path, ports)


def _is(kind: str, text: str) -> bool:
    if kind == "EID":
        return bool(_EID.match(text))
    ip = address(text) if "%" not in text else None
    return ip is not None and ip.version == int(kind[-1])


def _backups(walk: Walk, data: Object, path: Path, kind: str | None) -> None:
    if "backup_addr" not in data:
        return
    where = (*path, "backup_addr")
    backups = data["backup_addr"]
    if not isinstance(backups, list):
        walk.findings.add("type", where, f"backup_addr is {quoted(backups)}, not a list")
        return
    if kind == "EID" or len(backups) > MAX_PORTS:
        text = "an EID has no backup_addr" if kind == "EID" else f"backup_addr holds {len(backups)}; at most 16"
        walk.findings.add("length", where, text)
    for number, value in enumerate(backups):
        if kind in ("IPV4", "IPV6") and not (isinstance(value, str) and _is(kind, value)):
            walk.findings.add("address", (*where, number), f"backup_addr {quoted(value)} is no {kind}")


def _ports(walk: Walk, data: Object, path: Path, taken: dict[str, str]) -> None:
    """One address a port in a layer."""
    ports = walk.items(data, path, "ports")
    if len(ports) > MAX_PORTS:
        walk.findings.add("length", (*path, "ports"), f"ports holds {len(ports)}; at most {MAX_PORTS}")
    for where, port in ports:
        if not isinstance(port, str) or len(port) > 32 or not _PORT.match(port):
            walk.findings.add("address_port", where, f"port {quoted(port)} is not written DIE/PORT, such as 0/4")
        elif port in taken:
            walk.findings.add("address_port", where, f"port {port} has address {taken[port]} in this layer already")
        else:
            taken[port] = quoted(data.get("addr"))


def _spares(walk: Walk, ranks: list[Rank]) -> None:
    """``local_id`` 64 stands in for another one, which then has no rank; at most one does."""
    used = {rank.local_id for rank in ranks}
    spares = [rank for rank in ranks if rank.local_id == SPARE]
    for rank in ranks:
        replaced = walk.integer(
            rank.data, rank.path, "replaced_local_id", 0, MAX_ID, needed=rank.local_id == SPARE, rule="replaced"
        )
        where = (*rank.path, "replaced_local_id")
        if replaced is None or rank.local_id is None:
            continue
        if rank.local_id != SPARE and replaced != rank.local_id:
            text = f"replaced_local_id {replaced} of a rank that replaces none; its local_id is {rank.local_id}"
            walk.findings.add("replaced", where, text)
        elif rank.local_id == SPARE and replaced in used:
            walk.findings.add("replaced", where, f"local_id {replaced} is replaced, but has a rank itself")
    for rank in spares[1:]:
        walk.findings.add("replaced", (*rank.path, "local_id"), "a second rank with local_id 64 (a spare)")


def _unique_devices(walk: Walk, ranks: list[Rank]) -> None:
    for key in ("device_id", "local_id"):
        seen: dict[tuple[str, int], str] = {}
        for rank in ranks:
            number = getattr(rank, key)
            if rank.server is None or number is None:
                continue
            owner = seen.setdefault((rank.server, number), rank.name)
            if owner != rank.name:
                text = f"{key} {number} in {quoted(rank.server)} is that of {owner}, too"
                walk.findings.add("duplicate_device", (*rank.path, key), text)

"""The rank table of a job whose launcher reads one: found or made, checked by HCCL's rules, and laid over the nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.inventory import Inventory, ResolvedNode
from ostrain.errors import OstrainError, SpecError
from ostrain.spec.document import DocumentError
from ostrain.spec.job import JobSpec
from ostrain.spec.problems import Mark, Problem, Source, render_all

if TYPE_CHECKING:
    from ostrain.ranktable import Document, Report

SHOWN = 3  # problems of a table; `ostrain ranktable check` tells all
NODES_KNOWN = ("local", "ssh")  # backends whose nodes have names before the start


@dataclass(frozen=True)
class PlacedTable:
    """A table of exactly a job's ranks. ``devices``: physical ids of each node, in the order of its ranks."""

    text: str
    devices: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class TableWanted:
    """What a table is looked for with. Marks: where the job names launcher and table, the inventory its facts.

    path: the job's ``rank_table`` as a path that can be opened; None where it names none.
    """

    job: JobSpec
    inventory: Inventory
    launcher: Mark
    table: Mark
    facts: Mark
    path: Path | None

    @property
    def nodes(self) -> list[ResolvedNode]:
        return self.inventory.resolved()[: self.job.nodes]


def table_problems(wanted: TableWanted) -> list[Problem]:
    """What is wrong with asking for a table at all."""
    job, inventory = wanted.job, wanted.inventory
    if job.launcher != "rank_table":
        message = f"no table is read with launcher {job.launcher}; say `launcher: rank_table`, or leave it out"
        return [Problem(wanted.table, message)] if job.rank_table is not None else []
    if inventory.backend not in NODES_KNOWN:
        message = (
            f"a rank table names the servers, which {inventory.name} ({inventory.backend}) picks at the start only"
        )
        return [Problem(wanted.launcher, f"{message}; use msrun or mpirun")]
    if job.nodes > 1 and inventory.device == "Ascend" and job.rank_table is None and inventory.facts is None:
        message = (
            f"rank_table on {job.nodes} nodes needs the addresses of their devices: name a table (`rank_table: FILE`, "
            f"made by `ostrain ranktable make --cluster {inventory.name} --nodes {job.nodes} -o FILE`), or in the "
            "inventory what the nodes said (`facts: FOLDER`, filled by `ostrain ranktable make --save-facts FOLDER`)"
        )
        return [Problem(wanted.launcher, message)]
    return []


def placed_table(wanted: TableWanted) -> tuple[PlacedTable | None, list[Problem]]:
    """The table: the job's file, or made of the inventory's facts, or (one node, or no NPUs) of the inventory alone."""
    if wanted.path is not None:
        return _from_file(wanted, wanted.path)
    if wanted.inventory.facts is not None and wanted.inventory.device == "Ascend":
        return _from_facts(wanted, Path(wanted.inventory.facts))
    return _from_inventory(wanted)


def remade_table(job: JobSpec, inventory: Inventory, path: Path) -> PlacedTable | None:
    """The table of a job that was moved to other nodes; None where its launcher reads none.

    A file that the job names is of the nodes it was made for: what the inventory's nodes said comes first here.
    Raises SpecError. path: of the job's file.
    """
    if job.launcher != "rank_table":
        return None
    own = path.parent / Path(job.rank_table).expanduser() if job.rank_table is not None else None
    here = Mark(Source(str(path), ""))
    wanted = TableWanted(job, inventory, here, here, here, own if inventory.facts is None else None)
    problems = table_problems(wanted)
    table, found = placed_table(wanted) if not problems else (None, problems)
    if table is None:
        step = "say `facts: FOLDER` in the inventory (ostrain ranktable make --save-facts), or use msrun"
        raise SpecError(render_all(found), what="no rank table for the nodes the run is to move to", next_step=step)
    return table


def _from_file(wanted: TableWanted, path: Path) -> tuple[PlacedTable | None, list[Problem]]:
    from ostrain.ranktable import check, read

    try:
        document = read(str(path))
    except DocumentError as error:
        return None, error.problems
    except OstrainError as error:
        return None, [Problem(wanted.table, f"{error.what}: {error.why}")]
    report = check(document)
    problems = list(_refused(document, report)) or list(_misplaced(wanted, report, document))
    if problems:
        return None, problems
    return PlacedTable(document.source.text, _devices(wanted, report)), []


def _refused(document: Document, report: Report) -> Iterator[Problem]:
    """HCCL's own objections, at their places in the table."""
    from ostrain.ranktable.findings import place

    errors = sorted(
        ((place(finding, document), finding) for finding in report.findings.errors), key=lambda p: p[0].order
    )
    more = f" (and {len(errors) - SHOWN} more; `ostrain ranktable check {document.name}` tells all)"
    for number, (mark, finding) in enumerate(errors[:SHOWN], 1):
        code = f" (HCCL: {finding.rule.codes[0]})" if finding.rule.codes else ""
        rest = more if number == SHOWN < len(errors) else ""
        yield Problem(mark, f"{finding.message}{code}; {finding.next_step}{rest}")
    if not errors and report.kind == "group":
        message = "the old ModelArts format has no ranks; `ostrain ranktable convert FILE --to 1.0` gives it some"
        yield Problem(document.key_mark(("group_list",)), message)


def _misplaced(wanted: TableWanted, report: Report, document: Document) -> Iterator[Problem]:
    """A good table, but of other ranks, servers or devices than the job's."""
    world = wanted.job.nodes * wanted.job.devices_per_node
    per_server = {len(server.devices) for server in report.servers}
    if report.devices != world or per_server - {wanted.job.devices_per_node}:
        key = "rank_list" if report.kind == "2.0" else "server_list"
        make = (
            f"`ostrain ranktable make --cluster {wanted.inventory.name} --nodes {wanted.job.nodes}` makes one that fits"
        )
        count = len(report.servers)
        there = f"{report.devices} ranks" + (f" on {count} server{'s' * (count != 1)}" if count else "")
        asked = f"{world} on {wanted.job.nodes} nodes" if wanted.job.nodes > 1 else f"{world} on one node"
        yield Problem(document.key_mark((key,)), f"the table has {there}, the job {asked}; {make}")
        return
    for path, message in islice(_places(wanted, report), SHOWN):
        yield Problem(document.mark(path), message)


def _places(wanted: TableWanted, report: Report) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """(path in the table, message): servers must be the job's nodes in their order, with devices of theirs."""
    nodes, each = wanted.nodes, wanted.job.devices_per_node
    owner = {word: index for index, node in reversed([*enumerate(nodes)]) for word in _words(node)}
    for server in report.servers:
        ranks = sorted(device.rank_id or 0 for device in server.devices)
        index = ranks[0] // each
        node, path = nodes[index], (*server.path, "server_id")
        named = owner.get(server.server_id or "", owner.get(str(server.host_ip or "")))
        if named is None:
            yield path, f"server {server.name} is no node of the job; {node.name} is {' or '.join(_words(node))}"
        elif named != index:
            message = f"server {server.name} holds rank {ranks[0]}, which the job places on {node.name}; "
            yield path, message + "order the inventory's nodes as the table's servers, or make the table anew"
            return
        other = sorted(set(server.ids) - set(node.devices))
        if named == index and other:
            message = f"device {other[0]} of {node.name} is not among its `devices` in the inventory"
            yield next(d.path for d in server.devices if d.device_id == other[0]), message


def _words(node: ResolvedNode) -> list[str]:
    """What a table may call a node."""
    return list(dict.fromkeys([node.address.strip("[]"), node.name, node.host]))


def _devices(wanted: TableWanted, report: Report) -> tuple[tuple[int, ...], ...]:
    """Physical ids by rank, node by node."""
    pairs = [(device.rank_id or 0, device.device_id or 0) for server in report.servers for device in server.devices]
    pairs += [(rank.rank_id or 0, rank.device_id or 0) for rank in report.ranks]
    by_rank = [device for _, device in sorted(pairs)]
    each = wanted.job.devices_per_node
    return tuple(tuple(by_rank[start : start + each]) for start in range(0, len(by_rank), each))


def _from_facts(wanted: TableWanted, folder: Path) -> tuple[PlacedTable | None, list[Problem]]:
    """Made of what the nodes said when they were asked, as `ostrain ranktable make` does it."""
    from ostrain.ranktable.facts import node_facts
    from ostrain.ranktable.make import Wanted, make
    from ostrain.ranktable.transcript import read_folder

    try:
        said = read_folder(folder)
    except OstrainError as error:
        return None, [Problem(wanted.facts, f"{error.what}: {error.why}")]
    nodes, each = wanted.nodes, wanted.job.devices_per_node
    absent = [node.name for node in nodes if node.name not in said]
    if absent:
        more = f" and {len(absent) - 1} more nodes" if len(absent) > 1 else ""
        ask = f"`ostrain ranktable make --cluster {wanted.inventory.name} --save-facts {folder}` asks them"
        return None, [Problem(wanted.facts, f"{folder} holds nothing of {absent[0]}{more}; {ask}")]
    facts = [node_facts(node.name, said[node.name], node.address.strip("[]")) for node in nodes]
    versions = {version for one in facts for device in one.devices.values() for version in device.addresses}
    made = make(
        facts, Wanted(per_node=each, ip_version=6 if versions == {6} else 4), {n.name: n.devices[:each] for n in nodes}
    )
    if made.data is None:
        errors = [complaint for complaint in made.complaints if complaint.level == "error"]
        return None, [Problem(wanted.facts, _complaint_text(complaint)) for complaint in errors[:SHOWN]]
    return _laid(wanted, made.data, wanted.facts)


def _complaint_text(complaint: Any) -> str:
    where = f"node {complaint.node}: " if complaint.node else ""
    return where + "; ".join(part for part in (complaint.what, complaint.why, complaint.next_step) if part)


def _from_inventory(wanted: TableWanted) -> tuple[PlacedTable | None, list[Problem]]:
    """Without addresses of devices: enough inside one server; on CPUs HCCL, which needs them, is not there anyway."""
    each = wanted.job.devices_per_node
    return _laid(
        wanted, plain_table([(n.address.strip("[]"), n.devices[:each]) for n in wanted.nodes]), wanted.launcher
    )


def plain_table(servers: Sequence[tuple[str, Sequence[int]]]) -> dict[str, Any]:
    """A version 1.0 table of (server id, physical ids), ranks in this order. Keys as hccl_tools.py orders them."""
    listed, rank = [], 0
    for server_id, ids in servers:
        devices = [{"device_id": str(number), "rank_id": str(rank + place)} for place, number in enumerate(ids)]
        rank += len(devices)
        listed.append({"server_id": server_id, "device": devices, "host_nic_ip": "reserve"})
    return {"version": "1.0", "server_count": str(len(listed)), "server_list": listed, "status": "completed"}


def _laid(wanted: TableWanted, data: dict[str, Any], mark: Mark) -> tuple[PlacedTable | None, list[Problem]]:
    """A table made here, checked as any other. mark: where its problems are told."""
    from ostrain.ranktable import check_data
    from ostrain.ranktable.text import table_text

    report = check_data(data)
    lax = {"ip_missing"} if wanted.inventory.device == "CPU" else set()
    found = [finding.message for finding in report.findings.errors if finding.rule.name not in lax]
    found = found or [message for _, message in _places(wanted, report)]
    if found:
        return None, [Problem(mark, f"the rank table made of the inventory: {message}") for message in found[:SHOWN]]
    return PlacedTable(table_text(data), _devices(wanted, report)), []

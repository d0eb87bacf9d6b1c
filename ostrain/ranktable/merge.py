"""Several tables as one, ranks numbered anew: what merge_hccl.py does, with ranks as the strings HCCL wants."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ostrain.errors import OstrainError
from ostrain.ranktable.check import Report, check, check_data
from ostrain.ranktable.convert import from_groups
from ostrain.ranktable.document import Document
from ostrain.ranktable.findings import Finding
from ostrain.ranktable.locate import Path
from ostrain.spec.problems import Mark
from ostrain.states import ExitCode

# Merging numbers the ranks anew, whatever they were.
_MENDED = ("duplicate_rank", "rank_gap", "rank_interleaved", "rank_order")
_LISTS = ("server_list", "rank_list")


@dataclass
class Merged:
    """The table, its report, and where its entries come from: ``origins[k]`` is entry k's document and place there."""

    data: dict[str, Any]
    report: Report
    documents: Sequence[Document]
    origins: list[tuple[int, int]] = field(default_factory=list)

    def mark(self, path: Path) -> Mark:
        """Where what stands at ``path`` of the merged table came from."""
        return self._at(path)

    def key_mark(self, path: Path) -> Mark:
        return self._at(path)

    def _at(self, path: Path) -> Mark:
        if len(path) > 1 and path[0] in _LISTS and isinstance(path[1], int) and path[1] < len(self.origins):
            document, entry = self.origins[path[1]]
            return self.documents[document].mark((path[0], entry, *path[2:]))
        return self.documents[0].mark(())


def input_errors(document: Document) -> list[Finding]:
    """What of a table no renumbering mends."""
    return [finding for finding in check(document).findings.errors if not _is_mended(finding)]


def _is_mended(finding: Finding) -> bool:
    of_rank = finding.path[-1:] == ("rank_id",) or finding.message.startswith("rank_id is missing")
    return finding.rule.name in _MENDED or of_rank


def merge(documents: Sequence[Document]) -> Merged:
    """One table of all servers, in the order given (1.2: super pod by super pod). The inputs have no ``input_errors``.

    Raises OstrainError (exit 2) where they are of different kinds.
    """
    tables = [_as_table(document) for document in documents]
    versions = list(dict.fromkeys(str(table["version"]) for table in tables))
    if len(versions) > 1:
        names = ", ".join(f"{d.name} is {t['version']}" for d, t in zip(documents, tables, strict=True))
        raise OstrainError(
            "tables of different versions cannot be one",
            why=names,
            next_step="convert them to one version first: `ostrain ranktable convert FILE --to VERSION`",
            exit_code=ExitCode.USAGE,
        )
    if versions == ["2.0"]:
        data, origins = _ranks(tables)
    else:
        data, origins = _servers(tables, versions[0])
    return Merged(data, check_data(data), documents, origins)


def _as_table(document: Document) -> dict[str, Any]:
    data: dict[str, Any] = document.data
    return from_groups(data) if "group_list" in data and "version" not in data else copy.deepcopy(data)


def _ranks(tables: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], list[tuple[int, int]]]:
    ranks: list[dict[str, Any]] = []
    origins: list[tuple[int, int]] = []
    for number, table in enumerate(tables):
        ordered = sorted(enumerate(table["rank_list"]), key=lambda pair: _rank_order(pair[1]))
        for place, entry in ordered:
            ranks.append({**entry, "rank_id": len(ranks)})
            origins.append((number, place))
    return {"status": "completed", "version": "2.0", "rank_count": len(ranks), "rank_list": ranks}, origins


def _rank_order(entry: dict[str, Any]) -> int:
    rank = entry.get("rank_id")
    return rank if isinstance(rank, int) else 0


def _servers(tables: Sequence[dict[str, Any]], version: str) -> tuple[dict[str, Any], list[tuple[int, int]]]:
    listed = [
        ((number, place), server) for number, table in enumerate(tables)
        for place, server in enumerate(table["server_list"])
    ]  # fmt: skip
    pods = _pods(tables)
    if pods:
        order = {server: place for place, members in enumerate(pods.values()) for server in members}
        listed.sort(key=lambda pair: order.get(pair[1]["server_id"], len(order)))
    rank = 0
    for _, server in listed:
        for device in server["device"]:
            device["rank_id"] = str(rank)
            rank += 1
    servers = [server for _, server in listed]
    origins = [origin for origin, _ in listed]
    if version == "1.0":
        data = {"version": version, "server_count": str(len(servers)), "server_list": servers, "status": "completed"}
        return data, origins
    data = {"version": version, "status": "completed", "server_count": str(len(servers)), "server_list": servers}
    if pods:
        data["super_pod_list"] = [
            {"super_pod_id": pod, "server_list": [{"server_id": server} for server in members]}
            for pod, members in pods.items()
        ]
    return data, origins


def _pods(tables: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Super pods of all tables; the same id is the same super pod."""
    pods: dict[str, list[str]] = {}
    for table in tables:
        for pod in table.get("super_pod_list", ()):
            pods.setdefault(pod["super_pod_id"], []).extend(server["server_id"] for server in pod["server_list"])
    return pods


def dropped_keys(documents: Sequence[Document]) -> list[str]:
    """Keys at the top of the tables that a merged one has not, as with merge_hccl.py."""
    kept = {"version", "status", "server_count", "server_list", "super_pod_list", "rank_count", "rank_list"}
    kept |= {"group_count", "group_list"}
    return sorted({str(key) for document in documents for key in document.data if key not in kept})

"""Checks of rank ids: 0 to n-1, each once, those of a server one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from ostrain.ranktable.findings import Findings
from ostrain.ranktable.locate import Path
from ostrain.ranktable.servers import Server, named

Given = tuple[int, Path, str]  # rank, path of its rank_id, whose it is


def check_ranks(findings: Findings, servers: Sequence[Server]) -> None:
    """Ranks of 1.0 and 1.2."""
    devices = [device for server in servers for device in server.devices]
    given = [(d.rank_id, (*d.path, "rank_id"), named(servers, d)) for d in devices if d.rank_id is not None]
    is_whole = all(server.devices for server in servers)
    if check_numbers(findings, given, len(devices), is_whole=is_whole):
        _together(findings, servers)


def check_numbers(findings: Findings, given: Sequence[Given], size: int, *, is_whole: bool = True) -> bool:
    """Each rank once and below ``size``; whether that is so. The rest then follows: no holes.

    is_whole: every list of devices could be read; else nobody knows how many there are.
    """
    first: dict[int, str] = {}
    good = True
    for rank, path, owner in given:
        if rank in first:
            findings.add("duplicate_rank", path, f"rank {rank} is that of {first[rank]}, too")
            good = False
        first.setdefault(rank, owner)
    too_large = sorted(rank for rank in first if rank >= size) if is_whole else []
    if too_large:
        path = next(path for rank, path, _ in given if rank == too_large[0])
        text = f"{size} ranks have to be 0 to {size - 1}; there is rank {too_large[0]}"
        if len(given) == size:  # else some could not be read, and may be those
            text += f", but no rank {_holes(first, size)}"
        findings.add("rank_gap", path, text)
    return good and not too_large and len(first) == size


def _holes(ranks: Iterable[int], size: int, shown: int = 5) -> str:
    holes = sorted(set(range(size)) - set(ranks))
    words = [str(rank) for rank in holes[:shown]]
    return ", ".join(words) + (f" and {len(holes) - shown} more" if len(holes) > shown else "")


def _together(findings: Findings, servers: Sequence[Server]) -> None:
    """Ranks of a server without others between them; a note where their order is not that of the list."""
    rising = True
    last = -1
    for server in servers:
        ranks = [device.rank_id for device in server.devices if device.rank_id is not None]
        if not ranks:  # a server without devices is another rule's
            continue
        if max(ranks) - min(ranks) + 1 != len(ranks):
            ordered = sorted(ranks)
            odd = next(later for earlier, later in pairwise(ordered) if later != earlier + 1)
            device = next(device for device in server.devices if device.rank_id == odd)
            text = f"the ranks of server {server.name} are torn apart before {odd}: others lie between"
            findings.add("rank_interleaved", (*device.path, "rank_id"), text)
        pairs = [(device.device_id or 0, device.rank_id or 0) for device in server.devices]
        rising = rising and min(ranks) > last and sorted(pairs) == sorted(pairs, key=lambda pair: pair[1])
        last = max(ranks)
    if not rising and "rank_interleaved" not in {finding.rule.name for finding in findings.all}:
        findings.add("rank_order", ("server_list",), "ranks do not rise with servers and device ids", on_key=True)

"""Which checkpoints stay and which go. The same answer on every rank, from what all nodes have."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from models.checkpoint.folder import Local


def tell(found: Iterable[Local]) -> bytes:
    """What one node has, for the others."""
    return json.dumps(
        [
            {
                "step": local.step,
                "name": local.name,
                "digest": local.digest,
                "time": local.time,
                "shards": local.shards,
                "present": local.present,
                "problems": local.problems,
            }
            for local in found
        ]
    ).encode()


def hear(data: bytes) -> list[Local]:
    """What another node said; nothing from ranks that do not speak for one."""
    return [_local(record) for record in json.loads(data)] if data else []


def _local(record: Mapping[str, Any]) -> Local:
    return Local(
        step=record["step"],
        name=record["name"],
        digest=record["digest"],
        time=record["time"],
        shards=record["shards"],
        present=tuple(record["present"]),
        problems=tuple(record["problems"]),
        manifest=None,
    )


def whole_steps(nodes: Sequence[Iterable[Local]]) -> set[int]:
    """Committed steps of which all shards are there, by their sizes, on all nodes together."""
    shards: dict[tuple[int, str], set[int]] = {}
    wanted: dict[tuple[int, str], int] = {}
    for found in nodes:
        for local in found:
            if local.committed and local.digest:
                shards.setdefault((local.step, local.digest), set()).update(local.present)
                wanted[local.step, local.digest] = local.shards
    return {key[0] for key, present in shards.items() if len(present) == wanted[key]}


def superfluous(saved: int, nodes: Sequence[Iterable[Local]], keep_last: int, keep_every: int | None) -> list[int]:
    """Steps to remove once step ``saved`` is committed.

    The ``keep_last`` newest whole ones stay (that of ``saved`` among them), and multiples of ``keep_every``. Broken
    ones do not count, and go when they are older than the oldest that counts. Steps beyond ``saved`` are not touched.
    """
    whole = sorted({step for step in whole_steps(nodes) if step < saved} | {saved})
    if len(whole) < keep_last:
        return []
    oldest = whole[-keep_last]
    found = {local.step for node in nodes for local in node if local.committed}
    return sorted(step for step in found if step < oldest and not (keep_every is not None and step % keep_every == 0))

"""The same shard on several nodes, so that the loss of a node's disk loses no checkpoint.

The bytes travel by broadcasts while training waits: each shard passes every rank once, which costs about the size of
the whole checkpoint divided by the bandwidth between nodes. One node, or one copy, costs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.checkpoint.places import Places
from models.checkpoint.snapshot import write_chunks
from models.checkpoint.together import describe_error
from models.parallel.world import World

# What one broadcast carries at most: memory stays bounded.
PORTION = 64 << 20


@dataclass(frozen=True)
class Head:
    """What every rank must know of a shard, in front of what only leaders read."""

    file: str
    size: int
    sha256: str

    def pack(self) -> bytes:
        return json.dumps([self.file, self.size, self.sha256]).encode() + b"\n"

    @classmethod
    def unpack(cls, data: bytes) -> Head:
        return cls(*json.loads(data.partition(b"\n")[0]))


def body(data: bytes) -> bytes:
    return data.partition(b"\n")[2]


def holders(places: Places, rank: int, copies: int) -> list[int]:
    """The places that hold a rank's shard: its own, and the next ones."""
    own, count = places.of(rank), len(places.names)
    return [(own + ahead) % count for ahead in range(min(copies, count))]


def spread(
    path: Path,
    world: World,
    places: Places,
    copies: int,
    heads: Sequence[Head],
    chunks: Callable[[int], Iterator[memoryview]],
) -> dict[str, Any] | None:
    """Sends every rank's shard and writes those that belong here; what went wrong on this rank. A collective call."""
    problem = None
    for rank, head in enumerate(heads):
        targets = holders(places, rank, copies)[1:]
        mine = places.ranks[places.mine]
        # The ranks of a node share the work.
        writes = places.mine in targets and mine[rank % len(mine)] == world.rank
        source = chunks(PORTION) if rank == world.rank else None
        failed = receive(path / head.file, head, portions(world, rank, head.size, source), writes)
        problem = problem or failed
    return problem


def portions(world: World, root: int, size: int, source: Iterator[memoryview] | None) -> Iterator[bytes]:
    """The ``size`` bytes of ``source`` on rank ``root`` (None on the others), portion by portion, on every rank.

    An empty portion means that the root cannot go on. Every rank must take all of them: they are collectives.
    """
    received = 0
    while received < size:
        chunk = b""
        if source is not None:
            chunk = bytes(next(source, b""))
        data = world.broadcast_bytes(chunk, root=root)
        yield data
        if not data:
            return
        received += len(data)


def receive(path: Path, head: Head, data: Iterator[bytes], writes: bool) -> dict[str, Any] | None:
    """Takes all portions of a shard and, if this rank ``writes``, puts them into a synced file; what went wrong."""
    if not writes:
        for _ in data:
            continue
        return None
    try:
        sha256 = write_chunks(path, data)
        if sha256 != head.sha256:
            raise OSError(5, f"{head.file} arrived damaged", str(path))
    except OSError as error:
        # The others go on sending: this rank has to take the rest, too.
        for _ in data:
            continue
        return describe_error(error, path)
    return None

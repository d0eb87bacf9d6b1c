"""The manifest of a checkpoint: which shards there are, what each must hold, and where. Needs no numpy."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

FORMAT = 2
MANIFEST = "manifest.json"
STATE = "state.json"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")

# (kind/name, start, stop): a flat range of a tensor.
Range = tuple[str, int, int]


class BadManifest(Exception):
    """A manifest that cannot be trusted; the text says why."""


def shard_name(rank: int, world: int) -> str:
    return f"shard-{rank:05d}-of-{world:05d}.safetensors"


@dataclass(frozen=True)
class Shard:
    """One file: its size and SHA-256, the nodes it was written on, and its ranges in the order of its data."""

    file: str
    size: int
    sha256: str
    nodes: tuple[str, ...]
    pieces: tuple[Range, ...]


@dataclass(frozen=True)
class Manifest:
    """A whole checkpoint as one list. tensors: ``kind/name`` -> shape; time: seconds since the epoch; attempt: of the
    run, the one that wrote it, 0 where nobody knows."""

    step: int
    world: int
    time: float
    state_size: int
    state_sha256: str
    tensors: Mapping[str, tuple[int, ...]]
    shards: tuple[Shard, ...]
    attempt: int = 0

    @property
    def size(self) -> int:
        """Bytes of all shards, each counted once."""
        return sum(shard.size for shard in self.shards)

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(sorted({key.partition("/")[0] for key in self.tensors}))

    def encode(self) -> bytes:
        """JSON that carries its own SHA-256, so that a damaged manifest is known as such."""
        return _canonical({**self._record(), "sha256": self.digest}) + b"\n"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content: equal manifests have equal ones."""
        return _digest(self._record())

    def _record(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            **({"attempt": self.attempt} if self.attempt else {}),
            "step": self.step,
            "world": self.world,
            "time": self.time,
            "state": {"size": self.state_size, "sha256": self.state_sha256},
            "tensors": {key: list(shape) for key, shape in self.tensors.items()},
            "shards": [
                {
                    "file": shard.file,
                    "size": shard.size,
                    "sha256": shard.sha256,
                    "nodes": list(shard.nodes),
                    "pieces": [list(piece) for piece in shard.pieces],
                }
                for shard in self.shards
            ],
        }

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """BadManifest for anything but what :meth:`encode` wrote."""
        try:
            record = json.loads(data)
            if record["format"] != FORMAT:
                raise BadManifest(f"its format {record['format']} is not known to this version (it knows {FORMAT})")
            if record.pop("sha256") != _digest(record):
                raise BadManifest("is damaged (its own hash does not fit)")
            shards = tuple(
                Shard(
                    file=shard["file"],
                    size=shard["size"],
                    sha256=shard["sha256"],
                    nodes=tuple(shard["nodes"]),
                    pieces=tuple((key, start, stop) for key, start, stop in shard["pieces"]),
                )
                for shard in record["shards"]
            )
            return cls(
                step=record["step"],
                world=record["world"],
                time=record["time"],
                state_size=record["state"]["size"],
                state_sha256=record["state"]["sha256"],
                tensors={key: tuple(shape) for key, shape in record["tensors"].items()},
                shards=shards,
                attempt=int(record.get("attempt", 0)),
            )._checked()
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadManifest("is damaged") from None

    def _checked(self) -> Manifest:
        """Itself; ValueError where a value is none of its kind. A shard's file is a name: nothing is read or written
        outside the checkpoint's folder because a manifest says so."""
        numbers = [self.step, self.world, self.attempt, self.state_size, *(shard.size for shard in self.shards)]
        numbers += [place for shard in self.shards for _, *range_ in shard.pieces for place in range_]
        numbers += [length for shape in self.tensors.values() for length in shape]
        texts = [self.state_sha256, *self.tensors, *(shard.sha256 for shard in self.shards)]
        texts += [
            word for shard in self.shards for word in (shard.file, *shard.nodes, *(key for key, *_ in shard.pieces))
        ]
        if any(type(number) is not int or number < 0 for number in numbers) or not isinstance(self.time, int | float):
            raise ValueError("a number is none")
        if any(not isinstance(text, str) for text in texts):
            raise ValueError("a text is none")
        if any(not _NAME.fullmatch(shard.file) for shard in self.shards):
            raise ValueError("a file is no name")
        return self


def tiling_problem(tensors: Mapping[str, Sequence[int]], shards: Sequence[Shard]) -> str:
    """What keeps the pieces from covering every tensor exactly once; empty when they do."""
    ranges: dict[str, list[tuple[int, int]]] = {key: [] for key in tensors}
    for shard in shards:
        for key, start, stop in shard.pieces:
            if key not in ranges:
                return f"{shard.file} holds {key}, which is not in the list of tensors"
            ranges[key].append((start, stop))
    for key, found in ranges.items():
        reached = 0
        for start, stop in sorted(found):
            if start != reached or stop < start:
                return f"{key} is {'held twice' if start < reached else 'not held'} from {min(start, reached)}"
            reached = stop
        if reached != math.prod(tensors[key]):
            return f"{key} has {reached} values instead of {math.prod(tensors[key])}"
    return ""


def _canonical(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(record)).hexdigest()

"""Getting ranges of tensors onto a rank: what its node lacks comes from a node that has it, the rest is a read."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.checkpoint import folder as folders
from models.checkpoint.copies import PORTION, Head, portions, receive
from models.checkpoint.find import Found
from models.checkpoint.manifest import MANIFEST, STATE
from models.checkpoint.read import Index, Reader
from models.checkpoint.together import describe_error, raise_together
from models.exits import BAD_CHECKPOINT, PayloadError
from models.files import sync_directory
from models.parallel.world import World

# (kind, name, start, stop): a flat range, in C order, of a tensor.
Wanted = tuple[str, str, int, int]


@dataclass(frozen=True)
class Fit:
    """How a checkpoint fits the tensors a run has, by ``(kind, name)``.

    kinds: those of which the checkpoint has nothing (averages newly switched on, no optimizer state).
    missing, reshaped: tensors of other kinds that it lacks or has in another shape. unexpected: what nobody wants.
    """

    kinds: tuple[str, ...]
    missing: tuple[str, ...]
    reshaped: tuple[str, ...]
    unexpected: tuple[str, ...]

    @property
    def loadable(self) -> bool:
        """True when everything wanted is there, but for whole kinds."""
        return not self.missing and not self.reshaped


def fit(found: Found, wanted: Mapping[tuple[str, str], Sequence[int]]) -> Fit:
    """Compares the checkpoint with the whole shapes of the tensors a run needs. Not a collective; needs no file."""
    assert found.manifest is not None
    held = found.manifest.tensors
    kinds = {kind for kind, _ in wanted} - set(found.manifest.kinds)
    missing, reshaped = [], []
    for (kind, name), shape in wanted.items():
        key = f"{kind}/{name}"
        if kind in kinds:
            continue
        if key not in held:
            missing.append(f"{key} {list(shape)}")
        elif tuple(held[key]) != tuple(shape):
            reshaped.append(f"{key} is {list(held[key])}, the run has {list(shape)}")
    keys = {f"{kind}/{name}" for kind, name in wanted}
    unexpected = [f"{key} {list(shape)}" for key, shape in held.items() if key not in keys]
    return Fit(tuple(sorted(kinds)), tuple(missing), tuple(reshaped), tuple(unexpected))


def refuse(found: Found, fitting: Fit) -> PayloadError:
    """The error for a checkpoint that is not of this model."""
    lines = [f"missing: {line}" for line in fitting.missing] + [f"shape: {line}" for line in fitting.reshaped]
    shown = "\n    ".join(lines[:20]) + (f"\n    … and {len(lines) - 20} more" if len(lines) > 20 else "")
    return PayloadError(
        BAD_CHECKPOINT,
        "the checkpoint does not fit the model",
        where=str(found.path),
        why=f"{len(lines)} tensors differ:\n    {shown}",
        next_step="restore the model section, or start a new run with init_from",
    )


def fetch(found: Found, wanted: Sequence[Wanted], world: World) -> tuple[Found, tuple[str, ...]]:
    """Brings the shards that ranks of this node need and the node lacks from a node that has them; a collective call.

    Every rank gives what it wants itself. The new :class:`Found`, and the names of shards that travelled, the same on
    every rank. A shard is hash-checked and whole, or not there. PayloadError on every rank if one cannot be stored.
    """
    assert found.manifest is not None
    places = found.places
    index = Index(found.manifest)
    needed = {part[2] for kind, name, start, stop in wanted for part in index.parts(f"{kind}/{name}", start, stop)}
    told = [set(json.loads(data)) for data in world.gather_bytes(json.dumps(sorted(needed)).encode())]
    by_place = [set[int]().union(*(told[rank] for rank in ranks)) for ranks in places.ranks]
    lacking = {
        number: [place for place, numbers in enumerate(by_place) if number in numbers and place not in holders]
        for number, holders in enumerate(found.holders)
    }
    if not any(lacking.values()):
        return found, ()
    _make_room(found, world, {place for at in lacking.values() for place in at})
    for number, targets in lacking.items():
        if targets:
            _bring(found, world, number, targets)
    holders = tuple(tuple(sorted({*at, *lacking[number]})) for number, at in enumerate(found.holders))
    names = tuple(found.manifest.shards[number].file for number, targets in lacking.items() if targets)
    return dataclasses.replace(found, holders=holders), names


def _make_room(found: Found, world: World, targets: set[int]) -> None:
    """The step's folder with facts and manifest on nodes that have none of it."""
    assert found.manifest is not None
    problem = None
    if found.places.leader and found.places.mine in targets and not (found.path / MANIFEST).exists():
        try:
            temporary = folders.writing_path(found.path.parent, found.step)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            folders.write_synced(temporary / STATE, found.state_text.encode())
            folders.write_synced(temporary / MANIFEST, found.manifest.encode())
            sync_directory(temporary)
            folders.publish(found.path.parent, found.step)
        except OSError as error:
            problem = describe_error(error, found.path)
    raise_together(world, problem, "a checkpoint cannot be brought to this node", found.places.name)


def _bring(found: Found, world: World, number: int, targets: Sequence[int]) -> None:
    """One shard from the first place that has it to the places that lack it."""
    assert found.manifest is not None
    places, shard = found.places, found.manifest.shards[number]
    source = places.ranks[found.holders[number][0]]
    root = source[number % len(source)]
    temporary = found.path / f".{shard.file}.part"
    writes = places.leader and places.mine in targets
    chunks = _file_chunks(found.path / shard.file) if world.rank == root else None
    head = Head(shard.file, shard.size, shard.sha256)
    problem = receive(temporary, head, portions(world, root, shard.size, chunks), writes)
    if writes and problem is None:
        try:
            os.replace(temporary, found.path / shard.file)
            sync_directory(found.path)
        except OSError as error:
            problem = describe_error(error, temporary)
    if problem is not None:
        temporary.unlink(missing_ok=True)
    raise_together(world, problem, "a checkpoint cannot be brought to this node", places.name)


def _file_chunks(path: Path) -> Iterator[memoryview]:
    """The file in portions; it ends early where it cannot be read, which the receivers notice."""
    try:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(PORTION):
                yield memoryview(chunk)
    except OSError:
        return


def read_pieces(found: Found, wanted: Sequence[Wanted]) -> Iterator[np.ndarray]:
    """float32 [stop - start] of each range, in order, from this node's shards; nothing else is read.

    Call :func:`fetch` with the same ranges first. PayloadError(BAD_CHECKPOINT) if a range is not held.
    """
    assert found.manifest is not None
    mine = found.places.mine
    paths = {
        number: found.path / shard.file
        for number, shard in enumerate(found.manifest.shards)
        if mine in found.holders[number]
    }
    with Reader(found.manifest, paths) as reader:
        for kind, name, start, stop in wanted:
            yield reader.read(f"{kind}/{name}", start, stop)


def whole(found: Found, kind: str, name: str) -> Wanted:
    """The range that is all of a tensor."""
    assert found.manifest is not None
    return kind, name, 0, math.prod(found.manifest.tensors[f"{kind}/{name}"])

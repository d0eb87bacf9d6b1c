"""Saving while training goes on: a snapshot in memory, a writer in the background, a commit of all ranks together.

A checkpoint goes through three stages. In each a thread works beside training; when it has ended on every rank, which
the ranks learn from a sum they make each step anyway, all take the next one together:

1. *write*: this rank's shard goes to disk; then sizes, hashes and ranges are exchanged (and copies, if asked for);
2. *seal*: the leader of each node writes facts and manifest; then it is exchanged what every node has;
3. *publish*: leaders rename the folder, and remove what need not be kept.

No thread but training's own makes a collective.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.checkpoint import copies, folder, keeping
from models.checkpoint.folder import Local
from models.checkpoint.manifest import MANIFEST, STATE, Manifest, Shard, shard_name, tiling_problem
from models.checkpoint.pieces import Piece
from models.checkpoint.places import meet
from models.checkpoint.snapshot import Snapshot
from models.checkpoint.together import describe_error, raise_together
from models.config import CheckpointConfig
from models.events import attempt
from models.exits import PayloadError
from models.files import sync_directory
from models.parallel.world import World

_NICE = 5
_WHAT = "the checkpoint cannot be written"


@dataclass(frozen=True)
class Saved:
    """A committed checkpoint. seconds: from its begin to its commit; stall: those in which training waited for it."""

    step: int
    path: Path
    seconds: float
    stall: float
    size: int
    removed: tuple[int, ...]


class _Job:
    """Work in a thread of lower priority."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self._work = work
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            # Linux knows priorities of single threads: training's own keep theirs. Not allowed: all are equal.
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
            self.result = self._work()
        except BaseException as error:  # it is raised on every rank, by the thread that trains
            self.error = error

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def wait(self) -> None:
        self._thread.join()


@dataclass
class _Flight:
    """A checkpoint on its way."""

    step: int
    begun: float
    stage: str
    job: _Job
    stall: float = 0.0
    size: int = 0
    removed: tuple[int, ...] = ()


class Saver:
    """One per rank; making it is a collective call. ``node``: this rank's node name, for manifests and messages."""

    def __init__(self, path: Path, world: World, node: str, config: CheckpointConfig) -> None:
        self._folder, self._world, self._config = path, world, config
        self.places = meet(path, world, node)
        self._snapshot = Snapshot()
        self._flight: _Flight | None = None
        self._manifests: dict[int, tuple[int, Manifest]] = {}

    @property
    def busy(self) -> bool:
        """True while a checkpoint is on its way; the same on every rank."""
        return self._flight is not None

    def begin(self, step: int, pieces: Sequence[Piece], facts: dict[str, Any]) -> Saved | None:
        """Copies ``pieces`` and starts to write them. Rank 0's ``facts`` become ``state.json``.

        A checkpoint that is still on its way is finished first and returned; that is a collective.
        """
        previous = self.drain()
        begun = time.perf_counter()
        state = (json.dumps(facts, indent=1, sort_keys=True) + "\n").encode()
        name = shard_name(self._world.rank, self._world.size)
        self._snapshot.take(pieces, {"format": "ostrain", "step": str(step), "shard": name})
        self._flight = _Flight(step, begun, "write", _Job(lambda: self._write(step, name, state)))
        self._flight.stall = time.perf_counter() - begun
        return previous

    def progress(self) -> float:
        """To be summed over all ranks and given to :meth:`settle`: 0 busy or idle, 1 stage done, more than all failed.

        1024 stands for a failure in worlds of up to 512 ranks; float32 counts exactly far beyond that.
        """
        if self._flight is None or not self._flight.job.ended:
            return 0.0
        return 1.0 if self._flight.job.error is None else max(1024.0, 2.0 * self._world.size)

    def settle(self, total: float) -> Saved | None:
        """Takes the next stage when ``total`` says that every rank has done its part; the checkpoint when committed.

        Every rank calls it with the same total after every step. PayloadError on every rank if one has failed.
        """
        flight = self._flight
        if flight is None or total < self._world.size:
            return None
        start = time.perf_counter()
        if total > self._world.size:
            self._fail(flight)
        saved = self._advance(flight)
        flight.stall += time.perf_counter() - start
        return saved

    def drain(self) -> Saved | None:
        """Finishes the checkpoint on its way, if there is one: a collective call that blocks."""
        saved = None
        while self._flight is not None:
            start = time.perf_counter()
            self._flight.job.wait()
            self._flight.stall += time.perf_counter() - start
            saved = self.settle(float(self._world.sum(np.array([self.progress()], np.float32))[0]))
        return saved

    def _advance(self, flight: _Flight) -> Saved | None:
        if flight.stage == "write":
            told = self._world.gather_bytes(flight.job.result)
            self._copy(flight, told)
            flight.stage, flight.job = "seal", _Job(lambda: self._seal(flight.step, told))
            return None
        if flight.stage == "seal":
            flight.size, mine = flight.job.result
            nodes = [keeping.hear(data) for data in self._world.gather_bytes(mine)]
            keep = self._config
            flight.removed = tuple(keeping.superfluous(flight.step, nodes, keep.keep_last, keep.keep_every))
            flight.stage, flight.job = "publish", _Job(lambda: self._publish(flight.step, flight.removed))
            return None
        self._flight = None
        seconds = time.perf_counter() - flight.begun
        path = folder.step_path(self._folder, flight.step)
        return Saved(flight.step, path, seconds, flight.stall, flight.size, flight.removed)

    def _write(self, step: int, name: str, state: bytes) -> bytes:
        """This rank's shard on disk, and its entry of the manifest for the others."""
        path = folder.writing_path(self._folder, step)
        path.mkdir(parents=True, exist_ok=True)
        sha256 = self._snapshot.write(path / name)
        entry = {
            "file": name,
            "size": self._snapshot.size,
            "sha256": sha256,
            "pieces": self._snapshot.pieces,
            "shapes": self._snapshot.shapes,
        }
        if self._world.rank == 0:
            entry["state"], entry["time"] = state.decode(), round(time.time(), 3)
        return copies.Head(name, self._snapshot.size, sha256).pack() + zlib.compress(json.dumps(entry).encode(), 1)

    def _copy(self, flight: _Flight, told: Sequence[bytes]) -> None:
        """Shards of other nodes onto this one, where several nodes are to hold each."""
        if self._config.copies == 1 or len(self.places.names) == 1:
            return
        path = folder.writing_path(self._folder, flight.step)
        heads = [copies.Head.unpack(data) for data in told]
        problem = copies.spread(path, self._world, self.places, self._config.copies, heads, self._snapshot.chunks)
        self._abandon(flight, problem)

    def _seal(self, step: int, told: Sequence[bytes]) -> tuple[int, bytes]:
        """Facts and manifest beside this node's shards; (bytes of all shards, what this node has)."""
        if not self.places.leader:
            return sum(copies.Head.unpack(data).size for data in told), b""
        path = folder.writing_path(self._folder, step)
        manifest, state = self._manifest(step, [json.loads(zlib.decompress(copies.body(data))) for data in told])
        mine = {shard.file for shard in manifest.shards if self.places.name in shard.nodes}
        for stray in set(os.listdir(path)) - mine:
            (path / stray).unlink()
        folder.write_synced(path / STATE, state)
        folder.write_synced(path / MANIFEST, manifest.encode())
        sync_directory(path)
        return manifest.size, keeping.tell(self._survey(step))

    def _manifest(self, step: int, entries: Sequence[dict[str, Any]]) -> tuple[Manifest, bytes]:
        tensors: dict[str, tuple[int, ...]] = {}
        shards = []
        for rank, entry in enumerate(entries):
            for key, shape in entry["shapes"].items():
                if tensors.setdefault(key, tuple(shape)) != tuple(shape):
                    raise ValueError(f"rank {rank} has {key} as {shape}, another rank as {list(tensors[key])}")
            nodes = tuple(self.places.names[place] for place in self._holders(rank))
            pieces = tuple((key, start, stop) for key, start, stop in entry["pieces"])
            shards.append(Shard(entry["file"], entry["size"], entry["sha256"], nodes, pieces))
        problem = tiling_problem(tensors, shards)
        if problem:
            raise ValueError(f"the pieces of all ranks do not make whole tensors: {problem}")
        state = entries[0]["state"].encode()
        return Manifest(
            step=step,
            world=self._world.size,
            time=entries[0]["time"],
            state_size=len(state),
            state_sha256=folder.hash_bytes(state),
            tensors=tensors,
            shards=tuple(shards),
            attempt=attempt(),
        ), state

    def _holders(self, rank: int) -> list[int]:
        return copies.holders(self.places, rank, self._config.copies)

    def _survey(self, step: int) -> list[Local]:
        """Older steps this node has by now. Manifests already read are not read again."""
        found = []
        for number in folder.steps(self._folder):
            path = folder.step_path(self._folder, number)
            known = self._manifests.get(number)
            if number == step or not (path / MANIFEST).exists():
                continue
            stamp = (path / MANIFEST).stat().st_mtime_ns
            if known is None or known[0] != stamp:
                manifest, _ = folder.read_manifest(path, number)
                if manifest is None:
                    continue
                known = self._manifests[number] = (stamp, manifest)
            found.append(folder.examine(path, known[1]))
        return found

    def _publish(self, step: int, removed: Sequence[int]) -> None:
        if not self.places.leader:
            return
        folder.publish(self._folder, step)
        broken = [number for number in folder.broken_steps(self._folder) if removed and number <= max(removed)]
        folder.remove(self._folder, [*removed, *broken])

    def _fail(self, flight: _Flight) -> None:
        """The first failed rank's error on every rank. What was written of this checkpoint goes, earlier ones stay."""
        flight.job.wait()
        error = flight.job.error
        self._abandon(flight, None if error is None else describe_error(error, self._folder))
        raise PayloadError(1, _WHAT, where=str(self._folder), why="a rank said so, but none said why")

    def _abandon(self, flight: _Flight, problem: dict[str, Any] | None) -> None:
        """Ends the flight with PayloadError if any rank has a problem; a collective call."""
        try:
            raise_together(self._world, problem, _WHAT, self.places.name)
        except PayloadError:
            self._flight = None
            if self.places.leader and flight.stage != "publish":
                shutil.rmtree(folder.writing_path(self._folder, flight.step), ignore_errors=True)
            raise

"""Saves checkpoints in a child that is killed at a random byte, again and again, and checks what is left.

``python -m tests.models.checkpoint_kills FOLDER ROUNDS SEED`` prints rounds, kills in mid-save, and the newest step.
Every byte written and every rename, removal or sync counts; where the count runs out the child kills itself. One child
plays all ranks and nodes, so everything stops at once, as when the power goes.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.checkpoint import folder as folders
from models.checkpoint.saver import Saver
from models.config import CheckpointConfig
from models.parallel.world import World
from tests.models.checkpoints import Nodes, facts, pieces, same, tensors

# What an operation that writes no bytes counts for.
OPERATION = 60


class Fuse:
    """Kills this process when its budget is used up."""

    def __init__(self, budget: int) -> None:
        self.left = budget
        self.lock = threading.Lock()

    def spend(self, cost: int) -> int:
        """How much of the cost can be paid; the lock is kept when it is the last."""
        self.lock.acquire()
        paid = min(cost, self.left)
        self.left -= paid
        if paid == cost:
            self.lock.release()
        return paid

    def blow(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def fused(*arguments: Any, **options: Any) -> Any:
            if self.spend(OPERATION) < OPERATION:
                self.blow()
            return function(*arguments, **options)

        return fused


class FusedFile:
    def __init__(self, file: Any, fuse: Fuse) -> None:
        self._file, self._fuse = file, fuse

    def __enter__(self) -> FusedFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, data: Any) -> int:
        data = bytes(data)
        paid = self._fuse.spend(len(data))
        self._file.write(data[:paid])
        if paid < len(data):
            self._file.flush()
            self._fuse.blow()
        return len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def install(fuse: Fuse) -> None:
    """Counts everything that changes a disk, in this process."""
    opened = Path.open

    def open_fused(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        file = opened(self, mode, *arguments, **options)
        return FusedFile(file, fuse) if "w" in mode else file

    def rmtree(path: Any, ignore_errors: bool = False) -> None:
        if Path(path).is_dir():
            for entry in sorted(Path(path).iterdir()):
                os.unlink(entry)
            os.rmdir(path)

    Path.open = open_fused  # type: ignore[method-assign,assignment]
    shutil.rmtree = rmtree  # type: ignore[assignment]
    for name in ("rename", "replace", "fsync", "unlink", "rmdir", "mkdir"):
        setattr(os, name, fuse.around(getattr(os, name)))


def save_until_killed(nodes: Nodes, start: int, budget: int, pipe: int, config: dict[str, Any]) -> None:
    install(Fuse(budget))

    def work(world: World, folder: Path, node: str) -> None:
        saver = Saver(folder, world, node, CheckpointConfig(**config))
        for step in range(start + 1, start + 100):
            saver.begin(step, pieces(tensors(step), world.rank, world.size), facts(step))
            saver.drain()
            if world.rank == 0:
                os.write(pipe, step.to_bytes(8, "little"))

    nodes.each(work)


def newest_whole(nodes: Nodes) -> int:
    """The newest step of which, over all nodes, every file is there as its manifest says; 0 if none."""
    files: dict[int, dict[str, str]] = {}
    held: dict[int, set[tuple[str, str]]] = {}
    for node in range(nodes.count):
        for path in nodes.path(node).glob("*") if nodes.path(node).is_dir() else []:
            step = path.name.removeprefix(".").removesuffix(".writing").removeprefix("step-")
            if not step.isdigit():
                continue
            for file in path.iterdir():
                held.setdefault(int(step), set()).add((file.name, hashlib.sha256(file.read_bytes()).hexdigest()))
            try:
                manifest = json.loads((path / "manifest.json").read_text())
            except (ValueError, FileNotFoundError):
                continue
            files[int(step)] = {shard["file"]: shard["sha256"] for shard in manifest["shards"]}
            files[int(step)]["state.json"] = manifest["state"]["sha256"]
    return max((step for step, wanted in files.items() if set(wanted.items()) <= held[step]), default=0)


def one_round(nodes: Nodes, start: int, budget: int, config: dict[str, Any]) -> tuple[int, bool]:
    """(newest step afterwards, whether the kill left something unfinished)."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        save_until_killed(nodes, start, budget, write, config)
        os._exit(3)
    os.close(write)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
    said = b""
    while chunk := os.read(read, 4096):
        said += chunk
    os.close(read)
    acknowledged = int.from_bytes(said[-8:], "little") if said else start
    unfinished = any(path.name.startswith(".") for node in range(nodes.count) for path in nodes.path(node).glob("*"))
    expected = newest_whole(nodes)
    step, loaded = nodes.load()
    assert step == expected and acknowledged <= step <= acknowledged + 1, (step, expected, acknowledged)
    assert all(same(values, step) for values in loaded) or step == 0
    assert not any(path.name.startswith(".") for node in range(nodes.count) for path in nodes.path(node).glob("*"))
    assert not any(folders.broken_steps(nodes.path(node)) for node in range(nodes.count))
    return step, unfinished


def main(folder: str, rounds: int, seed: int) -> None:
    chance = random.Random(seed)
    unfinished = newest = done = 0
    while done < rounds:
        count = chance.choice([1, 1, 2, 3])
        nodes = Nodes(Path(folder) / str(done), count, count * chance.choice([1, 2]))
        config = {"keep_last": chance.choice([1, 2]), "copies": chance.choice([1, 2])}
        step = 0
        for _ in range(min(10, rounds - done)):
            budget = int(chance.uniform(0, 12_000) * nodes.ranks)
            step, left = one_round(nodes, step, budget, config)
            unfinished += left
            done += 1
        newest = max(newest, step)
    print(done, unfinished, newest)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

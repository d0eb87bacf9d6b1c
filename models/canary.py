"""One collective over all ranks: ``python -m models.canary``, started as a training would be.

Tells, through the heartbeat, how far each rank came: starting, joined (communication is up), done. Rank 0 writes
``canary.json``: how long joining, the first AllReduce (which opens connections) and one of 4 MB took every rank.
Numbers are small integers in float32: sums are exact in any order of adding.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from models.exits import PayloadError
from models.files import write_atomic
from models.task import Task, run_task

WORKER_FAILED = 1
FLOATS = 1 << 20  # 4 MB


@dataclass(frozen=True)
class CanaryConfig:
    """Nothing to configure; started: seconds since the epoch. ``max_device_memory`` as tasks have it."""

    started: float
    max_device_memory: int | None = None


def read(path: Path) -> CanaryConfig:
    """The canary reads no file."""
    return CanaryConfig(time.time())


def sing(config: CanaryConfig, task: Task) -> None:
    """Joins, adds up the ranks' numbers, compares. PayloadError where the sum is not what it has to be."""
    import numpy as np

    joined = time.time()
    world = task.world
    task.report.heartbeat(0, "joined")
    began = time.monotonic()
    _compare(task, world.sum(np.full(8, world.rank + 1, np.float32)))
    first = time.monotonic() - began
    began = time.monotonic()
    _compare(task, world.sum(np.full(FLOATS, world.rank + 1, np.float32)))
    second = time.monotonic() - began
    own = {
        "rank": world.rank,
        "node": task.report.node,
        "join": joined - config.started,
        "first": first,
        "large": second,
    }
    rows = [json.loads(row) for row in world.gather_bytes(json.dumps(own).encode())]
    if world.rank == 0:
        write_atomic(task.run_dir / "canary.json", json.dumps({"ranks": rows, "bytes": 4 * FLOATS}).encode())
    task.log.info(f"{world.size} ranks met: joined in {own['join']:.1f} s, AllReduce of 4 MB in {second:.3f} s")
    task.report.heartbeat(1, "done")


def _compare(task: Task, values: object) -> None:
    import numpy as np

    wanted = task.world.size * (task.world.size + 1) / 2
    seen = np.asarray(values)
    if not bool(np.all(seen == wanted)):
        raise PayloadError(
            WORKER_FAILED,
            f"the sum over all ranks is wrong: {float(seen.min()):g} to {float(seen.max()):g}, not {wanted:g}",
            where=f"rank {task.world.rank} on {os.environ.get('OSTRAIN_NODE', 'this node')}",
            why="a device or a link between devices changes data",
            next_step="npu-smi info -t ecc -i N on its node; leave devices out one by one to find it",
        )


def main(arguments: list[str] | None = None) -> int:
    return run_task("canary", __doc__ or "", read, sing, arguments)


if __name__ == "__main__":
    sys.exit(main())

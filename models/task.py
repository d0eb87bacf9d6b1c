"""What every task of the payload has in common: options, the run directory's files, one way to end with an error.

Imports no MindSpore before the threads of a worker are set.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from models.config.base import Section
from models.events import Log, Reporter
from models.faults import die
from models.parallel.world import host_threads, is_scheduler, launcher_rank, launcher_size
from models.stacks import arm

if TYPE_CHECKING:
    from models.parallel.world import World

Config = TypeVar("Config", bound=Section)


@dataclass
class Task:
    """One rank of a running task. ``step`` is what the task last finished; a report of an error names it."""

    run_dir: Path
    world: World
    report: Reporter
    log: Log
    step: int = 0


def run_task(
    name: str,
    doc: str,
    read: Callable[[Path], Any],
    body: Callable[[Any, Task], None],
    arguments: list[str] | None = None,
) -> int:
    """Runs ``python -m models.<name>``: ``body(read(config file), task)`` on every rank. Returns the exit code.

    read: configuration file -> configuration; raises PayloadError. It must not import MindSpore.
    """
    parser = argparse.ArgumentParser(prog=f"python -m models.{name}", description=doc.split("\n")[0])
    parser.add_argument("--config", type=Path, default=Path(f"{name}.yaml"), help=f"default: {name}.yaml")
    parser.add_argument("--run-dir", type=Path, default=Path("."), help="run directory (default: here)")
    options = parser.parse_args(arguments)
    # Before MindSpore is imported: threads per worker, and no chatter of its scheduler in the log.
    os.environ["OMP_NUM_THREADS"] = str(host_threads(launcher_size()))
    os.environ.setdefault("GLOG_v", "3")
    if is_scheduler():
        from models.parallel.ranks import start

        start()
        return 0
    rank, run_dir = launcher_rank(), options.run_dir.absolute()
    log, task = Log(), None
    try:
        for folder in ("heartbeat", "metrics"):
            (run_dir / folder).mkdir(parents=True, exist_ok=True)
        report = Reporter(run_dir, rank)
        arm(run_dir, rank)
        report.heartbeat(0, "starting")
        config = read(options.config if options.config.is_absolute() else run_dir / options.config)
        from models.parallel.ranks import start

        world = start(config.max_device_memory)
        # The library may have put handlers of its own in place: a worker told to end ends, wherever it is.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        task = Task(run_dir, world, report, log)
        body(config, task)
        return 0
    except Exception as error:
        die(error, run_dir, rank, task.step if task is not None else 0, log)

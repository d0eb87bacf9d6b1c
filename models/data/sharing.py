"""Work on many files, shared by the ranks: each does every n-th, tells how far it is, and all add up what they did."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from models.files import write_atomic
from models.task import Task

T = TypeVar("T")
SUMMARY = "summary.json"
_EVERY = 5.0


def share(items: Sequence[T], task: Task) -> list[T]:
    """This rank's items. What follows in a file is seldom alike in size, so each takes every n-th."""
    return list(items[task.world.rank :: task.world.size])


class Counter:
    """Counts of this rank, with a log line every few seconds and a heartbeat at every change."""

    def __init__(self, task: Task, what: str, total: int) -> None:
        self._task, self._what, self._total = task, what, total
        self._start = self._told = time.monotonic()
        self.counts = {"done": 0, "kept": 0, "failed": 0}

    def add(self, name: str, count: int = 1) -> None:
        """name: done (made now), kept (was there) or failed."""
        self.counts[name] += count
        finished = sum(self.counts.values())
        self._task.step = finished
        self._task.report.heartbeat(finished, "step")
        now = time.monotonic()
        if now - self._told >= _EVERY:
            self._told = now
            self._task.log.info(self._line(finished, now))

    def _line(self, finished: int, now: float) -> str:
        rate = self.counts["done"] / max(now - self._start, 1e-9)
        left = f", {(self._total - finished) / rate:.0f} s left" if rate else ""
        return f"{self._what}: {finished} of {self._total}, {rate:.2f}/s{left}"

    def finish(self, event: str, **facts: object) -> dict[str, object]:
        """Adds up over all ranks (a collective call); rank 0 writes ``summary.json`` and an event. The summary."""
        task = self._task
        names = list(self.counts)
        total = task.world.sum(np.array([self.counts[name] for name in names], np.float32))
        seconds = time.monotonic() - self._start
        summary: dict[str, object] = dict(zip(names, (int(count) for count in total), strict=True))
        summary |= {"seconds": round(seconds, 3), **facts}
        if task.world.rank == 0:
            write_atomic(task.run_dir / SUMMARY, (json.dumps(summary) + "\n").encode())
            task.report.event(event, **summary)
            task.log.info(
                f"{self._what}: {summary['done']} made, {summary['kept']} were there, {summary['failed']} failed, "
                f"{seconds:.1f} s"
            )
        task.report.heartbeat(task.step, "done")
        return summary

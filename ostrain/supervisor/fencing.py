"""Fences: a node that was given up is told so as soon as it answers, and what it still runs is ended."""

from __future__ import annotations

import queue
import threading
from typing import Any

from cluster.backend import NodeError, RunRef
from cluster.recovery import NodeRecovery

EVERY = 3.0  # seconds between two tries
BOUND = 15.0


class Fencer:
    """Tries in the background to reach nodes with an open fence. ``closed`` tells which have answered."""

    def __init__(self, recovery: NodeRecovery) -> None:
        self._recovery = recovery
        self._lock = threading.Lock()
        self._open: dict[str, tuple[RunRef, int]] = {}
        self._told: queue.SimpleQueue[tuple[str, int, dict[str, Any]]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._threads: dict[str, threading.Thread] = {}

    def fence(self, run: RunRef, node: str, attempt: int) -> None:
        """From now on: attempts of ``run`` before ``attempt`` are over on ``node``."""
        with self._lock:
            self._open[node] = (run, attempt)
            if node not in self._threads or not self._threads[node].is_alive():
                thread = threading.Thread(target=self._try, args=(node,), name=f"fence {node}", daemon=True)
                self._threads[node] = thread
                thread.start()

    def closed(self) -> list[tuple[str, int, dict[str, Any]]]:
        """(node, its fence, its kill report) of nodes that have answered since the last call."""
        found = []
        while not self._told.empty():
            found.append(self._told.get_nowait())
        return found

    @property
    def open(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(self._open)

    def stop(self) -> None:
        self._stop.set()

    def _try(self, node: str) -> None:
        while not self._stop.is_set():
            with self._lock:
                if node not in self._open:
                    return
                run, attempt = self._open[node]
            answer = self._recovery.fence(run, [run.plan.node(node)], attempt, timeout=BOUND)[node]
            if isinstance(answer, NodeError) and answer.kind != "no_run":
                self._stop.wait(EVERY)
                continue
            report = {"killed": [], "survivors": []} if isinstance(answer, NodeError) else answer
            if report["survivors"]:
                self._stop.wait(EVERY)
                continue
            with self._lock:
                if self._open.get(node) == (run, attempt):
                    del self._open[node]
                    self._told.put((node, attempt, report))

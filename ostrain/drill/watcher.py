"""Watches a run the way its owner could: what the nodes write, what the store holds, what the supervisor noted.

One thread a node follows its metrics, events and status; a node that is cut off holds up nobody else.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.backend import Backend, Chunk, NodeError, NodeNews, RunRef
from ostrain.errors import OstrainError
from ostrain.logs import LineAssembler
from ostrain.plan import LaunchPlan, NodePlan
from ostrain.store import Run, Store
from ostrain.supervisor.journal import Entry, read_journal

PATTERNS = ("metrics/rank-*.jsonl", "events.jsonl")
LOOK = 0.25  # seconds between two looks
AGAIN = 1.0  # seconds between two follows of a node: of one that does not answer, or between attempts


@dataclass
class Seen:
    """What was seen of a run so far. Times are this machine's.

    losses: attempt -> step -> (loss, gradient norm), the same on every rank. first_seen: attempt -> step -> when.
    statuses: node -> its newest status object. checkpoints: steps that were committed, by attempt. records: rank -> its
    lines of metrics, in order.
    """

    losses: dict[int, dict[int, tuple[float | None, float | None]]] = field(default_factory=dict)
    first_seen: dict[int, dict[int, float]] = field(default_factory=dict)
    statuses: dict[str, dict[str, Any]] = field(default_factory=dict)
    checkpoints: dict[int, set[int]] = field(default_factory=dict)
    records: dict[int, list[dict[str, Any]]] = field(default_factory=dict)

    def newest_step(self, attempt: int) -> int:
        return max(self.losses.get(attempt, {}), default=0)

    def newest_checkpoint(self, attempt: int) -> int:
        return max(self.checkpoints.get(attempt, ()), default=0)

    def final_losses(self) -> dict[int, tuple[float | None, float | None]]:
        """step -> what the last attempt that made it saw."""
        latest: dict[int, tuple[float | None, float | None]] = {}
        for attempt in sorted(self.losses):
            latest.update(self.losses[attempt])
        return dict(sorted(latest.items()))


class Watcher:
    """Follows one run. ``tick`` has to be called again and again by the thread that made it."""

    def __init__(self, store: Store, run_id: str, backend: Backend) -> None:
        self._store, self._backend = store, backend
        self.run_id = run_id
        self.seen = Seen()
        self.nodes: dict[str, NodePlan] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._mistake: BaseException | None = None
        self.run = self.tick()

    def tick(self) -> Run:
        """The run as the store has it; nodes that are new in it are followed from now on."""
        if self._mistake is not None:
            raise self._mistake
        self.run = self._store.get(self.run_id)
        plan = self.run.plan
        for node in plan.nodes:
            if node.name not in self.nodes:
                self.nodes[node.name] = node
                thread = threading.Thread(target=self._follow, args=(plan, node), daemon=True)
                thread.start()
                self._threads.append(thread)
        return self.run

    @property
    def journal(self) -> list[Entry]:
        return read_journal(self.run_id)

    def wait(self, until: Callable[[], bool], bound: float, what: str) -> None:
        """Look until it is so. OstrainError when the run ended first, or after ``bound`` seconds."""
        deadline = time.monotonic() + bound
        while not until():
            run = self.tick()
            if run.state.final and run.settled:
                raise OstrainError(f"{self.run_id} ended before {what}: {run.state.value} {run.reason}")
            if time.monotonic() > deadline:
                raise OstrainError(f"{self.run_id}: {what} did not happen within {bound:.0f} s")
            time.sleep(LOOK)

    def statuses(self) -> dict[str, dict[str, Any]]:
        with self._lock:
            return dict(self.seen.statuses)

    def close(self) -> None:
        """End the threads. The backend's connections are closed with them: a broken one would hold its thread up."""
        self._stop.set()
        self._backend.close()
        for thread in self._threads:
            thread.join(3.0)

    def _follow(self, plan: LaunchPlan, node: NodePlan) -> None:
        ref = RunRef(self.run_id, replace(plan, nodes=(node,)))
        cursors: dict[str, int] = {}
        assembler = LineAssembler()
        try:
            while not self._stop.is_set():
                try:
                    for item in self._backend.follow(ref, {node.name: cursors}, PATTERNS):
                        if isinstance(item, Chunk):
                            cursors[item.path] = item.end
                            self._take(assembler, item)
                        elif isinstance(item, NodeNews):
                            with self._lock:
                                self.seen.statuses[node.name] = dict(item.status)
                        if self._stop.is_set():
                            return
                except NodeError:
                    pass  # tried again until the watcher is closed
                self._stop.wait(AGAIN)
        except BaseException as mistake:  # shown by the next tick
            self._mistake = mistake

    def _take(self, assembler: LineAssembler, chunk: Chunk) -> None:
        now = time.time()
        for line in assembler.feed(chunk):
            try:
                record = json.loads(line.text)
            except ValueError:
                continue  # cut off by a kill; what follows stands on a line of its own
            if not isinstance(record, dict):
                continue
            with self._lock:
                if chunk.path == "events.jsonl":
                    self._event(record)
                elif "loss" in record:
                    self._step(record, now)
                    rank = int(chunk.path.rpartition("-")[2].partition(".")[0])
                    self.seen.records.setdefault(rank, []).append(record)

    def _event(self, record: dict[str, Any]) -> None:
        if record.get("event") == "checkpoint_saved":
            self.seen.checkpoints.setdefault(record["attempt"], set()).add(int(record["step"]))

    def _step(self, record: dict[str, Any], now: float) -> None:
        attempt, step = int(record["attempt"]), int(record["step"])
        self.seen.losses.setdefault(attempt, {})[step] = (record["loss"], record.get("grad_norm"))
        self.seen.first_seen.setdefault(attempt, {}).setdefault(step, now)

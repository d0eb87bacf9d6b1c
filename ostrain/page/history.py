"""A run's past out of its files: curves by attempt, a distribution a rank, events. Bounded, however long it ran."""

from __future__ import annotations

import json
import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from cluster.backend import Backend, Chunk, FollowItem, FollowLost, NodeError, NodeNews, RunRef
from ostrain.curves import Point, finite
from ostrain.logs import LineAssembler
from ostrain.store import Run

PATTERNS = ("metrics/rank-*.jsonl", "events.jsonl")
CURVE_BYTES = 96 << 20  # of the first rank's metrics: more than 200,000 steps
OTHERS_BYTES = 48 << 20  # of all other ranks' together
EVENT_BYTES = 8 << 20  # of each node
KEPT_STEPS = 400  # newest lines of a rank that its distribution and the stragglers are judged by
CURVES = ("loss", "grad_norm", "lr", "seconds", "data_wait")


@dataclass(frozen=True)
class Spread:
    """Seconds a step of a rank: least, quartiles, most, over ``count`` steps; waiting for data: the median."""

    rank: int
    node: str
    count: int
    least: float
    low: float
    median: float
    high: float
    most: float
    wait: float | None
    memory: int | None


@dataclass
class History:
    """curves: name -> attempt -> points. events: (node, record). cut: what was too long to be read whole."""

    run: Run
    curves: dict[str, dict[int, list[Point]]] = field(default_factory=lambda: {name: {} for name in CURVES})
    rows: dict[int, deque[dict[str, Any]]] = field(default_factory=dict)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    statuses: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    cut: list[str] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)

    def take(self, items: Iterable[FollowItem]) -> None:
        """Everything a follow yields."""
        lines = LineAssembler()
        first = min((rank for node in self.run.plan.nodes for rank in node.ranks), default=0)
        for item in items:
            if isinstance(item, FollowLost):
                self.missing[item.node] = item.error.what
            elif isinstance(item, NodeNews):
                self.statuses[item.node] = dict(item.status)
            elif isinstance(item, Chunk):
                for line in lines.feed(item):
                    self._line(item, line.text, first)

    def _line(self, chunk: Chunk, text: str, first: int) -> None:
        try:
            record = json.loads(text)
        except ValueError:  # what a killed writer left, or half a line where the reading began
            return
        if not isinstance(record, dict):
            return
        if chunk.path == "events.jsonl":
            self.events.append((chunk.node, record))
            return
        number = chunk.path.rpartition("-")[2].partition(".")[0]
        if number.isdigit() and isinstance(record.get("step"), int):
            record = _numbers(record)
            if record["seconds"] is not None:
                self.rows.setdefault(int(number), deque(maxlen=KEPT_STEPS)).append(record)
            if int(number) == first:
                self._curves(record)

    def _curves(self, record: dict[str, Any]) -> None:
        self.last = record
        for name in CURVES:
            points = finite([(record["step"], record.get(name))])
            self.curves[name].setdefault(record["attempt"], []).extend(points)

    def spreads(self) -> list[Spread]:
        """Of every rank that told anything, in order of rank."""
        node_of = {rank: node.name for node in self.run.plan.nodes for rank in node.ranks}
        found = []
        for rank, rows in sorted(self.rows.items()):
            values = sorted(y for _, y in finite((0, row.get("seconds")) for row in rows))
            waits = [y for _, y in finite((0, row.get("data_wait")) for row in rows)]
            memory = [int(y) for _, y in finite((0, row.get("memory")) for row in rows)]
            if values:
                low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
                wait = statistics.median(waits) if waits else None
                found.append(Spread(rank, node_of.get(rank, "?"), len(values), values[0], low, median, high, values[-1],
                                    wait, max(memory, default=None)))  # fmt: skip
        return found


def _numbers(record: dict[str, Any]) -> dict[str, Any]:
    """The record with None for what should be a number and is none."""
    names = (*CURVES, "tokens_per_s", "memory", "comm_wait")
    told = {name: record.get(name) for name in names}
    good = {name: value if finite([(0, value)]) else None for name, value in told.items()}
    attempt = record.get("attempt")
    return {**record, **good, "attempt": attempt if isinstance(attempt, int) else 1}


def read_history(backend: Backend, run: Run) -> History:
    """Ask every node once. Nodes that do not answer are in ``missing``."""
    history = History(run)
    ref = RunRef(run.run_id, run.plan)
    ranks = [rank for node in run.plan.nodes for rank in node.ranks]
    share = min(4 << 20, max(16 << 10, OTHERS_BYTES // max(1, len(ranks) - 1)))
    cursors: dict[str, dict[str, int]] = {}
    for name, answer in backend.files(ref, PATTERNS).items():
        if isinstance(answer, NodeError):
            continue
        for path, facts in answer.items():
            limit = EVENT_BYTES if path == "events.jsonl" else share
            if path == f"metrics/rank-{min(ranks)}.jsonl":
                limit = CURVE_BYTES
            if (start := int(facts["size"]) - limit) > 0:
                cursors.setdefault(name, {})[path] = start
                if limit != share:
                    history.cut.append(f"{path} of {name}: the first {start >> 20} MB were left out")
    history.take(backend.follow(ref, cursors, PATTERNS, until_final=False))
    return history

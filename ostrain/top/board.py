"""What is known of a run's nodes and ranks, from the followed files and the nodes' status. Pure: no clock, no I/O."""

from __future__ import annotations

import json
import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from cluster.backend import Chunk, FollowItem, FollowLost, NodeError, NodeNews
from ostrain.curves import LatestAttempt
from ostrain.logs import LineAssembler
from ostrain.plan import LaunchPlan
from ostrain.status import RunStatus, derive
from ostrain.store import Run
from ostrain.top.events import Told, told

RECENT = 8  # steps whose median is a rank's pace


@dataclass
class Rank:
    """A rank as its metrics and its heartbeat tell of it. seconds, waits: of its last steps; memory: bytes at most."""

    rank: int
    node: str
    step: int | None = None
    attempt: int = 0
    loss: float | None = None
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    waits: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    memory: int | None = None
    phase: str = ""
    beat: float | None = None  # this machine's clock
    state: str = ""

    @property
    def pace(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def wait(self) -> float | None:
        return statistics.median(self.waits) if self.waits else None

    def take_metrics(self, record: dict[str, Any]) -> None:
        attempt = int(record.get("attempt") or 1)
        if attempt < self.attempt:
            return
        if attempt > self.attempt:
            self.seconds.clear()
            self.waits.clear()
        self.attempt, self.step = attempt, int(record["step"])
        self.loss = _number(record.get("loss"))
        self.memory = int(memory) if (memory := _number(record.get("memory"))) else self.memory
        if (seconds := _number(record.get("seconds"))) is not None:
            self.seconds.append(seconds)
        if (wait := _number(record.get("data_wait"))) is not None:
            self.waits.append(wait)


@dataclass
class Node:
    """lost: since when it does not answer, and why. temperatures: device -> degrees, where something tells them."""

    name: str
    ranks: list[Rank]
    status: dict[str, Any] | None = None
    lost: tuple[float, str] | None = None
    given_up: bool = False
    temperatures: dict[int, int] = field(default_factory=dict)


class Board:
    """Feed it what a follow yields."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.plan: LaunchPlan = run.plan
        self.nodes = {
            node.name: Node(node.name, [Rank(rank, node.name) for rank in node.ranks]) for node in self.plan.nodes
        }
        self.ranks = {rank.rank: rank for node in self.nodes.values() for rank in node.ranks}
        self.losses = LatestAttempt()
        self.events: deque[Told] = deque(maxlen=200)
        self.steps: int | None = self.plan.steps or None
        self._lines = LineAssembler()

    def moved(self, run: Run) -> Board:
        """The board of the run's next attempt, maybe on other nodes."""
        board = Board(run)
        board.losses, board.events, board.steps = self.losses, self.events, self.steps
        for name in board.nodes.keys() & self.nodes.keys():
            board.nodes[name].temperatures = self.nodes[name].temperatures
        return board

    def take(self, item: FollowItem, now: float) -> None:
        """One item of a follow. now: seconds since the epoch here."""
        node = self.nodes.get(item.node)
        if node is None:
            return
        if isinstance(item, FollowLost):
            node.lost = node.lost or (now, item.error.what)
            node.given_up = item.final
            return
        node.lost, node.given_up = None, False
        if isinstance(item, Chunk):
            self._take_lines(item)
        elif isinstance(item, NodeNews):
            self._take_status(node, dict(item.status), now)

    def _take_lines(self, chunk: Chunk) -> None:
        for line in self._lines.feed(chunk):
            try:
                record = json.loads(line.text)
            except ValueError:  # the following began within a line, or a killed writer left one
                continue
            if not isinstance(record, dict):
                continue
            if chunk.path == "events.jsonl":
                if (one := told(chunk.node, record)) is not None:
                    self.events.append(one)
            elif isinstance(record.get("step"), int):
                self._take_metrics(chunk.path, record)

    def _take_metrics(self, path: str, record: dict[str, Any]) -> None:
        number = path.rpartition("-")[2].partition(".")[0]
        rank = self.ranks.get(int(number)) if number.isdigit() else None
        if rank is None:
            return
        rank.take_metrics(record)
        if isinstance(record.get("steps"), int):
            self.steps = record["steps"]
        if rank.rank == min(self.ranks):
            self.losses.add(record["step"], rank.attempt, record.get("loss"))

    def _take_status(self, node: Node, status: dict[str, Any], now: float) -> None:
        node.status = status
        shift = now - float(status.get("time") or now)
        for rank in node.ranks:
            beat = (status.get("heartbeat") or {}).get(str(rank.rank))
            if isinstance(beat, dict):
                rank.phase = str(beat.get("phase") or "")
                rank.beat = float(beat["time"]) + shift if isinstance(beat.get("time"), int | float) else None
        for worker in status.get("workers") or []:
            if worker.get("rank") in self.ranks:
                self.ranks[worker["rank"]].state = _ended(worker)

    def status(self, now: float) -> RunStatus:
        """The run's state as far as its nodes have told."""
        answers: dict[str, dict[str, Any] | NodeError] = {}
        for name, node in self.nodes.items():
            if node.lost is not None:
                answers[name] = NodeError("unreachable", node.lost[1], node=name)
            elif node.status is not None:
                answers[name] = node.status
        return derive(self.run, answers, now)

    @property
    def step(self) -> int | None:
        """How far the run is: the step that every rank of the newest attempt has made."""
        newest = max((rank.attempt for rank in self.ranks.values()), default=0)
        seen = [rank.step for rank in self.ranks.values() if rank.step is not None and rank.attempt == newest]
        return min(seen) if seen else None

    @property
    def loss(self) -> float | None:
        return self.ranks[min(self.ranks)].loss if self.ranks else None

    @property
    def pace(self) -> float | None:
        """Seconds a step of the slowest rank."""
        return max((pace for rank in self.ranks.values() if (pace := rank.pace) is not None), default=None)

    def seconds_left(self) -> float | None:
        if self.steps is None or self.step is None or self.pace is None:
            return None
        return max(0, self.steps - self.step) * self.pace


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _ended(worker: dict[str, Any]) -> str:
    """What a worker's record says: running, or how it ended."""
    if worker.get("state") == "running":
        return "running"
    if worker.get("signal"):
        return str(worker["signal"])
    code = worker.get("exit_code")
    return "done" if code == 0 else f"exit {code}" if code is not None else "vanished"

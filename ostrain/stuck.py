"""Who is stuck, where: every rank's stack, step and process state at one moment, and the one rank that is odd.

``look`` asks all nodes at once and never fails because of one of them: a node that does not answer is itself a finding.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.backend import Backend, NodeError, RunRef
from ostrain.errors import OstrainError
from ostrain.stack_text import Kind, Stack, main_stack
from ostrain.stragglers import Straggler, stragglers

__all__ = ["RankState", "Straggler", "StuckReport", "Suspect", "find_suspect", "judge", "look", "stragglers"]

# Process states of proc(5) that explain a standstill by themselves.
_STOPPED = {"T": "its process is stopped (SIGSTOP)", "t": "a debugger holds its process"}
# Kinds that are a consequence: somebody else has to come.
_WAITING = (Kind.COLLECTIVE, Kind.SYNC)
# Seconds that a heartbeat has to be older than all others' before that alone makes a rank odd: what clocks and
# schedulers differ by is less.
_OLDER = 2.0


@dataclass(frozen=True)
class RankState:
    """One rank at the moment of the look.

    state: letter of proc(5); ``""`` where there is no process (``worker`` says ended or vanished) or no answer.
    age: seconds since its last heartbeat, by its node's clock; None where there was none.
    """

    rank: int
    node: str
    worker: str = "running"
    state: str = ""
    wchan: str = ""
    step: int | None = None
    phase: str = ""
    age: float | None = None
    stack: Stack = field(default_factory=Stack)
    text: str = ""

    @property
    def kind(self) -> Kind:
        return self.stack.kind

    @property
    def frame(self) -> str:
        place = self.stack.place
        return str(place) if place is not None else ""

    def as_dict(self) -> dict[str, Any]:
        return {
            "rank": self.rank, "node": self.node, "worker": self.worker, "state": self.state, "wchan": self.wchan,
            "step": self.step, "phase": self.phase, "age": self.age, "frame": self.frame,
            "kind": self.kind.name.lower(), "stack": self.text,
        }  # fmt: skip


@dataclass(frozen=True)
class Suspect:
    """The odd one. ``rank`` is None where a whole node is it; ``frame`` is empty where no stack could be had."""

    node: str
    rank: int | None
    step: int | None
    phase: str
    frame: str
    why: str

    def __str__(self) -> str:
        who = f"node {self.node}" if self.rank is None else f"rank {self.rank} on node {self.node}"
        at = "" if self.step is None else f" at step {self.step}"
        where = f", in {self.frame}" if self.frame else ""
        return f"{who}{at}{where}: {self.why}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "node": self.node, "rank": self.rank, "step": self.step, "phase": self.phase,
            "frame": self.frame, "why": self.why,
        }  # fmt: skip


@dataclass(frozen=True)
class StuckReport:
    """What ``look`` found.

    suspect: the odd rank or node, None where none stands out. ranks: every rank of the plan, in order.
    unreachable: node -> why it did not answer. lines: what to tell a person, the verdict first.
    """

    suspect: Suspect | None
    ranks: tuple[RankState, ...]
    unreachable: dict[str, str] = field(default_factory=dict)
    lines: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def as_dict(self) -> dict[str, Any]:
        return {
            "suspect": self.suspect.as_dict() if self.suspect else None,
            "ranks": [rank.as_dict() for rank in self.ranks],
            "unreachable": self.unreachable,
            "lines": list(self.lines),
        }


def look(backend: Backend, run: RunRef, timeout: float = 8.0) -> StuckReport:
    """Ask every worker of a run for its stack, all at once, and name the odd one. Takes at most ``timeout`` seconds.

    It disturbs nobody: a worker writes its stacks and goes on. Never raises because of a node.
    """
    start = time.monotonic()
    answers = _answers(backend, run, timeout)
    if all(isinstance(one, NodeError) for one in answers.values()) and time.monotonic() - start < timeout / 2:
        answers = _polled(backend, run, timeout / 2)
    return judge(run, answers)


def _answers(backend: Backend, run: RunRef, timeout: float) -> dict[str, Any]:
    """Empty where the backend has no way to its workers (Slurm's run beside its login machine)."""
    ask = getattr(backend, "stacks", None)
    try:
        return dict(ask(run, timeout=timeout)) if ask is not None else {}
    except OstrainError as error:
        return {node.name: NodeError("unreachable", error.what, node=node.name) for node in run.plan.nodes}


def _polled(backend: Backend, run: RunRef, timeout: float) -> dict[str, Any]:
    """Heartbeats alone, from the nodes' status."""
    try:
        statuses = backend.poll(run, timeout=timeout)
    except OstrainError as error:
        return {
            node.name: NodeError("unreachable", error.what, node=node.name, why=error.why) for node in run.plan.nodes
        }
    answers: dict[str, Any] = {}
    for name, status in statuses.items():
        if isinstance(status, NodeError):
            answers[name] = status
            continue
        beats = status.get("heartbeat") or {}
        workers = {str(one["rank"]): one["state"] for one in status.get("workers", [])}
        ranks = {
            rank: {"worker": workers.get(rank, "running"), "heartbeat": beats.get(rank)} for rank in {*beats, *workers}
        }
        answers[name] = {"node": name, "time": status.get("time"), "ranks": ranks}
    return answers


def judge(run: RunRef, answers: Mapping[str, Any]) -> StuckReport:
    """The report of what the nodes answered (``stacks`` of docs/run-directory.md, or a NodeError). Pure."""
    ranks: list[RankState] = []
    unreachable: dict[str, str] = {}
    for node in run.plan.nodes:
        answer = answers.get(node.name)
        if answer is None or isinstance(answer, NodeError):
            unreachable[node.name] = answer.what if isinstance(answer, NodeError) else "no answer"
            ranks += [RankState(rank, node.name, worker="unknown") for rank in node.ranks]
        else:
            told = answer.get("ranks") or {}
            moment = answer.get("time")
            ranks += [_rank_state(rank, node.name, told.get(str(rank)), moment) for rank in node.ranks]
    ranks.sort(key=lambda one: one.rank)
    suspect = find_suspect(ranks, unreachable)
    return StuckReport(suspect, tuple(ranks), unreachable, tuple(_lines(suspect, ranks, unreachable)))


def _rank_state(rank: int, node: str, told: Mapping[str, Any] | None, moment: Any) -> RankState:
    if told is None:
        return RankState(rank, node, worker="absent")
    beat = told.get("heartbeat") or {}
    step, when = beat.get("step"), beat.get("time")
    text = str(told.get("stack") or "")
    known = isinstance(when, int | float) and isinstance(moment, int | float)
    return RankState(
        rank=rank,
        node=node,
        worker=str(told.get("worker") or "running"),
        state=str(told.get("state") or ""),
        wchan=str(told.get("wchan") or ""),
        step=step if isinstance(step, int) else None,
        phase=str(beat.get("phase") or ""),
        age=max(0.0, moment - when) if known else None,
        stack=main_stack(text),
        text=text,
    )


def find_suspect(ranks: Sequence[RankState], unreachable: Mapping[str, str]) -> Suspect | None:
    """The odd one, by the strongest evidence there is: a process that cannot go on, one that is gone, a node that does
    not answer, the lowest step, the only one that the others' collective still waits for, the oldest heartbeat."""
    for rule in (_halted, _gone):
        if (found := rule(ranks)) is not None:
            return found
    if unreachable:
        node = min(unreachable, key=lambda name: min((one.rank for one in ranks if one.node == name), default=0))
        return Suspect(node, None, None, "", "", f"the node does not answer: {unreachable[node]}")
    for rule in (_behind, _not_with_the_others, _silent):
        if (found := rule(ranks)) is not None:
            return found
    return None


def _suspect(one: RankState, why: str) -> Suspect:
    return Suspect(one.node, one.rank, one.step, one.phase, one.frame, why)


def _halted(ranks: Sequence[RankState]) -> Suspect | None:
    for one in ranks:
        if one.state in _STOPPED:
            return _suspect(one, _STOPPED[one.state])
    blocked = [one for one in ranks if one.state == "D"]
    if blocked and len(blocked) < len(ranks):
        one = blocked[0]
        channel = f" in {one.wchan}" if one.wchan else ""
        return _suspect(
            one, f"the kernel holds its process{channel} (state D): a disk, a file server or a device hangs"
        )
    return None


def _gone(ranks: Sequence[RankState]) -> Suspect | None:
    left = [one for one in ranks if one.worker == "running"]
    gone = [one for one in ranks if one.worker in ("ended", "vanished") and one.phase != "done"]
    if not left or not gone:
        return None
    return _suspect(gone[0], f"its process has {gone[0].worker} while {len(left)} others run")


def _behind(ranks: Sequence[RankState]) -> Suspect | None:
    known = [one for one in ranks if one.step is not None]
    steps = {one.step for one in known if one.step is not None}
    if len(steps) < 2:
        return None
    least, most = min(steps), max(steps)
    behind = [one for one in known if one.step == least]
    # Those that already wait for others are behind because of them.
    busy = [one for one in behind if one.kind not in _WAITING] or behind
    one = min(busy, key=lambda one: (-(one.age or 0.0), one.rank))
    ahead = len(known) - len(behind)
    why = f"it is at step {least}, {ahead} other{'s' if ahead > 1 else ''} at up to step {most}"
    return _suspect(one, f"{why}; it {one.kind.value}" if one.stack.frames else why)


def _not_with_the_others(ranks: Sequence[RankState]) -> Suspect | None:
    seen = [one for one in ranks if one.stack.frames]
    waiting = [one for one in seen if one.kind in _WAITING]
    if not waiting or len(ranks) < 2:
        return None
    common, count = Counter(_meeting(one) for one in waiting).most_common(1)[0]
    others = [one for one in seen if _meeting(one) != common]
    if not others or count < len(others):
        return None
    one = min(others, key=lambda one: (one.kind in _WAITING, -(one.age or 0.0), one.rank))
    there = next(other for other in waiting if _meeting(other) == common)
    doing = f"{count} other{'s wait' if count > 1 else ' waits'} in {there.frame}"
    return _suspect(one, f"it {one.kind.value} while {doing}")


def _meeting(one: RankState) -> tuple[tuple[str, int, str], ...]:
    """What a waiting rank waits in, as lines of code. Of a collective its callers, too: two are not one."""
    if one.kind is Kind.COLLECTIVE and one.stack.collective is not None:
        frames = [frame for frame in one.stack.frames if frame.ours] or [one.stack.collective]
        return tuple(frame.key for frame in frames)
    return (one.stack.place.key,) if one.stack.place is not None else ()


def _silent(ranks: Sequence[RankState]) -> Suspect | None:
    known = sorted((one for one in ranks if one.age is not None), key=lambda one: -(one.age or 0.0))
    if len(known) < 2:
        return None
    oldest, next_one = known[0].age or 0.0, known[1].age or 0.0
    if oldest - next_one < _OLDER:
        return None
    return _suspect(known[0], f"its last heartbeat is {oldest:.0f} s old, every other's at most {next_one:.0f} s")


def _lines(suspect: Suspect | None, ranks: Sequence[RankState], unreachable: Mapping[str, str]) -> list[str]:
    lines = [str(suspect)] if suspect is not None else [_nobody(ranks)]
    named = suspect.node if suspect is not None and suspect.rank is None else ""
    lines += [f"node {name} does not answer: {why}" for name, why in unreachable.items() if name != named]
    return lines


def _nobody(ranks: Sequence[RankState]) -> str:
    places = Counter(_meeting(one) for one in ranks if one.kind in _WAITING)
    running = [one for one in ranks if one.worker == "running"]
    if not running:
        return "no worker runs"
    if places and sum(places.values()) == len(running) > 1 and len(places) == 1:
        return (
            f"no rank stands out: all {len(running)} wait in {running[0].frame}; "
            "suspect the network between the nodes, or a device"
        )
    ages = [one.age for one in running if one.age is not None]
    moved = f"; the newest heartbeat is {min(ages):.0f} s old" if ages else ""
    return f"no rank stands out of {len(running)}{moved}"

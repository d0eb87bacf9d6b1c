"""What the nodes' answers of one attempt amount to: it is well, it has ended, or something is wrong, and what.

Pure: told of every answer together with the time it came, asked for a verdict with the time it is. Two clocks:
``now`` counts seconds and never jumps, ``wall`` is the time of day that faults are dated by.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from ostrain.states import State
from ostrain.supervisor.policy import SPECIFIC
from ostrain.supervisor.settings import Settings

SILENT = 6.0  # a node that said nothing for so long is in doubt: agents tick every 2 s
COLLECT = 1.5  # after a first fault: consequences and causes on other nodes come in within this
BEGIN = 20.0  # an attempt that was started shows on every node within this
LAST_NODE = 600.0  # the others have succeeded: so long an unreachable node may take to say so, too
_STARTING = ("starting", "loading")
# Phases in which a rank is not expected to make steps; only where all ranks are in one of them.
_SLOW = ("starting", "loading", "compiling", "saving", "validating", "done")
# Signals that are a cause; others (SIGABRT of a broken connection, SIGTERM of a launcher) may be a consequence.
_CAUSES = ("SIGKILL", "SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE")


@dataclass(frozen=True)
class Fault:
    """What ended an attempt. time: on the submitter's clock; step: the last one known to be done; lost: nodes that do
    not answer; raw: the agent's fault object, where one recorded it."""

    reason: str
    node: str | None = None
    rank: int | None = None
    step: int | None = None
    time: float = 0.0
    detail: str = ""
    lost: tuple[str, ...] = ()
    raw: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Well:
    """Nothing to do."""


@dataclass(frozen=True)
class Ended:
    """The attempt is over and nothing is to be mended. state: SUCCEEDED or CANCELLED."""

    state: State
    detail: str = ""


Verdict = Well | Fault | Ended


@dataclass
class _Rank:
    step: int
    phase: str
    base: int | None = None  # step at which training began in this attempt


@dataclass
class _Node:
    heard: float
    status: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    doubted: bool = False
    ranks: dict[str, _Rank] = field(default_factory=dict)


class Health:
    """One attempt under watch."""

    def __init__(self, nodes: Iterable[str], attempt: int, settings: Settings, now: float) -> None:
        self.attempt, self._settings = attempt, settings
        self._nodes = {name: _Node(now) for name in nodes}
        self._begun = self._advanced = now
        self._failed_at: float | None = None
        self._finished_at: float | None = None
        self._faults: dict[str, Mapping[str, Any]] = {}
        self._intervals: deque[float] = deque(maxlen=20)
        self._trained_since: float | None = None
        self.step: int | None = None

    # -- what is told ------------------------------------------------------------------------------------------------

    def answered(self, node: str, now: float) -> bool:
        """A node is there; whether it had been in doubt."""
        one = self._nodes[node]
        one.heard, one.error = now, ""
        was, one.doubted = one.doubted, False
        return was

    def silent(self, node: str, error: str) -> None:
        """The stream of a node broke."""
        self._nodes[node].error = error or "it does not answer"

    def news(self, node: str, status: Mapping[str, Any], now: float, wall: float) -> None:
        """A node's status object (docs/run-directory.md)."""
        one = self._nodes[node]
        one.status = status
        if status.get("attempt") != self.attempt:
            return
        if status.get("state") == State.FAILED.value:
            fault = dict(status.get("fault") or {"reason": status.get("reason"), "time": status["time"]})
            fault["time"] = float(fault.get("time") or status["time"]) + (wall - float(status["time"]))
            self._faults.setdefault(node, fault)
            self._failed_at = now if self._failed_at is None else self._failed_at
        started = {str(worker["rank"]): worker.get("started") or 0.0 for worker in status.get("workers") or []}
        for rank, beat in (status.get("heartbeat") or {}).items():
            # A file of the attempt before is older than the worker.
            if rank in started and float(beat.get("time") or 0.0) >= started[rank]:
                self._beat(one, rank, int(beat.get("step") or 0), str(beat.get("phase") or ""), now)

    def _beat(self, node: _Node, rank: str, step: int, phase: str, now: float) -> None:
        known = node.ranks.setdefault(rank, _Rank(step, phase))
        if known.base is None and phase not in _STARTING:
            known.base = step
        if known.base is not None and step > known.base and step > (self.step if self.step is not None else -1):
            if self._trained_since is None:
                self._trained_since = now
            else:
                self._intervals.append(now - self._advanced)
            self.step, self._advanced = step, now
        known.step, known.phase = step, phase

    # -- what it amounts to ------------------------------------------------------------------------------------------

    def doubtful(self, now: float) -> list[tuple[str, str]]:
        """Nodes newly in doubt, with what is known of why."""
        found = []
        for name, one in self._nodes.items():
            if not one.doubted and not self._final(one) and (one.error or now - one.heard > SILENT):
                one.doubted = True
                found.append((name, one.error or f"nothing heard for {now - one.heard:.0f} s"))
        return found

    def trained(self, now: float) -> float:
        """Seconds since the first step of this attempt."""
        return now - self._trained_since if self._trained_since is not None else 0.0

    @property
    def stepped(self) -> bool:
        """Whether the attempt has made a step."""
        return self._trained_since is not None

    def reachable(self, now: float) -> list[str]:
        """Nodes that were heard of lately."""
        return [name for name, one in self._nodes.items() if not self._quiet(one, now)]

    def verdict(self, now: float, wall: float) -> Verdict:
        """The first of: a person's cancel, a fault, a lost node, a hang, the end; else all is well."""
        states = {name: self._state(one) for name, one in self._nodes.items()}
        if State.CANCELLED.value in states.values():
            return Ended(State.CANCELLED)
        if self._failed_at is not None:
            return self._failed(now, wall, states)
        if all(state == State.SUCCEEDED.value for state in states.values()):
            return Ended(State.SUCCEEDED)
        return self._last_ones(now, wall, states) or self._lost(now, wall) or self._hung(now, wall, states) or Well()

    def _state(self, one: _Node) -> str:
        return str(one.status.get("state")) if one.status.get("attempt") == self.attempt else ""

    def _final(self, one: _Node) -> bool:
        return self._state(one) in (State.SUCCEEDED.value, State.FAILED.value, State.CANCELLED.value)

    def _quiet(self, one: _Node, now: float) -> bool:
        return not self._final(one) and (bool(one.error) or now - one.heard > SILENT)

    def _failed(self, now: float, wall: float, states: Mapping[str, str]) -> Verdict:
        assert self._failed_at is not None
        if now - self._failed_at < COLLECT and not all(self._final(one) for one in self._nodes.values()):
            return Well()
        node, fault = self._primary()
        quiet = [name for name, one in self._nodes.items() if self._quiet(one, now)]
        if quiet and not _specific(fault):
            # What failed may only have missed the node that is silent: that node has its time to answer.
            gone = [name for name in quiet if now - self._nodes[name].heard >= self._settings.node_timeout]
            if not gone:
                return Well()
            return self._node_lost(gone, now, wall)
        detail = str((fault.get("message") or {}).get("what") or "")
        if not detail and fault.get("signal"):
            detail = f"killed by {fault['signal']}"
        elif not detail and fault.get("exit_code") is not None:
            detail = f"exit code {fault['exit_code']}"
        return Fault(
            str(fault.get("reason") or "worker_failed"), node, fault.get("rank"), self.step, float(fault["time"]),
            detail, tuple(quiet), fault,
        )  # fmt: skip

    def _primary(self) -> tuple[str, Mapping[str, Any]]:
        """The fault that the others follow from: the earliest, but a node's own cause before a generic failure that
        was written within two seconds of it (clocks of nodes are put right only that well)."""
        by_time = sorted(self._faults.items(), key=lambda item: float(item[1]["time"]))
        for name, fault in by_time:
            if _specific(fault) and float(fault["time"]) <= float(by_time[0][1]["time"]) + 2.0:
                return name, fault
        return by_time[0]

    def _lost(self, now: float, wall: float) -> Fault | None:
        """A node that does not answer, while the run stands still: as long as others make steps, so does it."""
        pace = 2.0 * median(self._intervals) if self._intervals else 0.0
        if now - self._advanced < max(self._settings.node_timeout, pace):
            return None
        gone = [
            name for name, one in self._nodes.items()
            if self._quiet(one, now) and now - one.heard >= self._settings.node_timeout
        ]  # fmt: skip
        return self._node_lost(gone, now, wall) if gone else None

    def _node_lost(self, gone: list[str], now: float, wall: float) -> Fault:
        first = min(gone, key=lambda name: self._nodes[name].heard)
        silent = now - self._nodes[first].heard
        why = self._nodes[first].error
        detail = f"no answer for {silent:.0f} s" + (f" ({why})" if why else "")
        return Fault("node_lost", first, None, self.step, wall - silent, detail, tuple(gone))

    def _hung(self, now: float, wall: float, states: Mapping[str, str]) -> Fault | None:
        phases = [rank.phase for name, one in self._nodes.items() for rank in one.ranks.values()
                  if states[name] == State.RUNNING.value]  # fmt: skip
        unbegun = [name for name, state in states.items() if not state]
        still = now - self._advanced
        if unbegun and now - self._begun > BEGIN and not self._quiet(self._nodes[unbegun[0]], now):
            return Fault("start_failed", unbegun[0], None, self.step, wall, "the attempt never began there")
        if not self.stepped or all(phase in _SLOW for phase in phases):
            limit = max(self._settings.start_timeout, self._settings.hang_timeout)
        else:
            limit = max(self._settings.hang_timeout, 3.0 * median(self._intervals) if self._intervals else 0.0)
        if still < limit or any(self._quiet(one, now) for one in self._nodes.values()):
            return None  # a silent node explains it better, and has its time to answer
        detail = f"no rank made a step for {still:.0f} s"
        return Fault("hung", None, None, self.step, wall - still, detail)

    def _last_ones(self, now: float, wall: float, states: Mapping[str, str]) -> Verdict | None:
        """All nodes that answer have succeeded: the others had no part missing, but have to say so themselves."""
        waiting = [name for name, state in states.items() if state != State.SUCCEEDED.value]
        if len(waiting) == len(states) or any(not self._quiet(self._nodes[name], now) for name in waiting):
            self._finished_at = None
            return None
        self._finished_at = now if self._finished_at is None else self._finished_at
        if now - self._finished_at < LAST_NODE:
            return Well()
        names = ", ".join(waiting)
        return Ended(State.RUNNING, f"every other node has succeeded, but {names} does not answer")


def _specific(fault: Mapping[str, Any]) -> bool:
    if fault.get("reason") == "worker_killed":
        return fault.get("signal") in _CAUSES
    return fault.get("reason") in SPECIFIC

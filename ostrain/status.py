"""From what each node says to one status of the run: state, reason, first fault, progress."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.backend import Backend, NodeError, PerNode, RunRef
from ostrain.states import REASONS, ExitCode, State
from ostrain.store import Run, Store, owner_alive, process_identity


@dataclass(frozen=True)
class RunStatus:
    """The derived status of a run's current attempt.

    fault: the earliest fault over all nodes, on this machine's clock: ``node, rank, reason, signal, exit_code, time,
        log, tail, message``.
    waits_for: a scheduler's own word for why it has not started the run yet; "" without one.
    nodes: node -> the agent's status object. unreachable: node -> why it could not be asked.
    """

    run_id: str
    attempt: int
    state: State
    reason: str
    settled: bool
    fault: dict[str, Any] | None = None
    progress: dict[str, Any] | None = None
    checkpoint: int | None = None
    waits_for: str = ""
    nodes: dict[str, Any] = field(default_factory=dict)
    unreachable: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        return int(REASONS[self.reason].exit_code) if self.reason in REASONS else int(ExitCode.RUN_FAILED)

    def as_dict(self) -> dict[str, Any]:
        return {
            "run_id": self.run_id,
            "attempt": self.attempt,
            "state": self.state.value,
            "reason": self.reason,
            "settled": self.settled,
            "exit_code": self.exit_code,
            "fault": self.fault,
            "progress": self.progress,
            "checkpoint": self.checkpoint,
            "waits_for": self.waits_for,
            "nodes": self.nodes,
            "unreachable": self.unreachable,
        }

    @classmethod
    def from_run(cls, run: Run) -> RunStatus:
        """The last status stored for a run (what is shown of runs that have ended)."""
        known = {key: run.status[key] for key in ("fault", "progress", "checkpoint") if key in run.status}
        return cls(
            run_id=run.run_id,
            attempt=run.attempt,
            state=run.state,
            reason=run.reason,
            settled=run.settled,
            nodes=run.status.get("nodes", {}),
            unreachable=run.status.get("unreachable", {}),
            **known,
        )


# What a node would say of a run that it does not have.
_NEVER_STAGED: dict[str, Any] = {
    "attempt": 0, "state": "NONE", "reason": "preparing", "agent": {"alive": False, "pid": None}, "fault": None,
    "workers": [], "progress": None, "checkpoints": [], "heartbeat": {},
}  # fmt: skip


def derive(run: Run, answers: PerNode[dict[str, Any]], now: float) -> RunStatus:
    """One status from the nodes' answers. A node that still tells of an earlier attempt has not begun this one."""
    nodes: dict[str, Any] = {}
    unreachable: dict[str, str] = {}
    for name, answer in answers.items():
        if isinstance(answer, NodeError) and answer.kind == "no_run":
            nodes[name] = dict(_NEVER_STAGED, node=name, time=now)
        elif isinstance(answer, NodeError):
            unreachable[name] = answer.what
        else:
            nodes[name] = answer
    current = {name: status for name, status in nodes.items() if status.get("attempt") == run.attempt}
    state, reason, fault = _decide(run, current, len(answers), bool(unreachable), now)
    running = any(status["state"] == "RUNNING" for status in current.values())
    return RunStatus(
        run_id=run.run_id,
        attempt=run.attempt,
        state=state,
        reason=reason,
        settled=state.final and not running and not unreachable and not _job_lives(nodes),
        waits_for=_waits_for(nodes) if state is State.PREPARING else "",
        fault=fault,
        progress=_progress(current, run.attempt),
        checkpoint=_newest_checkpoint(nodes),
        nodes=nodes,
        unreachable=unreachable,
    )


def _decide(
    run: Run, current: Mapping[str, Any], expected: int, some_unreachable: bool, now: float
) -> tuple[State, str, dict[str, Any] | None]:
    states = [status["state"] for status in current.values()]
    fault = _first_fault(current, now)
    if states and len(current) == expected and all(state == "NONE" for state in states):
        if all(status["reason"] == "queued" for status in current.values()):
            return State.PREPARING, "queued", fault
        if _job_lives(current):
            return State.PREPARING, "preparing", fault
    if "FAILED" in states:
        failed = [status["reason"] for status in current.values() if status["state"] == "FAILED"]
        return State.FAILED, fault["reason"] if fault else failed[0], fault
    if "CANCELLED" in states:
        stopped = any(status["reason"] == "service_stopped" for status in current.values())
        return State.CANCELLED, "service_stopped" if stopped else "cancelled", fault
    if len(states) == expected and all(state == "SUCCEEDED" for state in states):
        return State.SUCCEEDED, "done", None
    if run.state.final:
        return run.state, run.reason, run.status.get("fault")
    if len(current) == expected or some_unreachable:
        return (State.RUNNING, "running", None) if states else (run.state, run.reason, None)
    if owner_alive(run.owner):
        return State.PREPARING, "recovering" if run.reason == "recovering" else "preparing", None
    # A node never began this attempt and nobody is left who would start it.
    missing = "the submitting client ended before every node had started, or a run directory was deleted since"
    return (
        State.FAILED,
        "start_failed",
        {"reason": "start_failed", "node": None, "rank": None, "message": {"what": missing}},
    )


def _job_lives(nodes: Mapping[str, Any]) -> bool:
    """Whether a scheduler still has a job of the run: what the nodes say need not be the last word."""
    return any((status.get("scheduler") or {}).get("live") for status in nodes.values())


def _waits_for(nodes: Mapping[str, Any]) -> str:
    """Why a scheduler has not started the run yet, in its own word."""
    words = ((one.get("scheduler") or {}).get("reason") for one in nodes.values())
    return str(next(filter(None, words), ""))


def _first_fault(current: Mapping[str, Any], now: float) -> dict[str, Any] | None:
    """The earliest fault on this machine's clock: each node's clock is shifted by what it shows now."""
    faults = []
    for name, status in current.items():
        if status.get("fault"):
            fault = dict(status["fault"], node=name)
            fault["time"] = fault["time"] + (now - status["time"])
            faults.append(fault)
    return min(faults, key=lambda fault: fault["time"]) if faults else None


def _progress(current: Mapping[str, Any], attempt: int) -> dict[str, Any] | None:
    # After a resume the newest line of a node may still be one of the attempt before.
    seen = [
        one for status in current.values() if (one := status.get("progress")) and one.get("attempt") in (None, attempt)
    ]
    return max(seen, key=lambda progress: progress["step"]) if seen else None


def _newest_checkpoint(nodes: Mapping[str, Any]) -> int | None:
    steps = [step for status in nodes.values() for step in status.get("checkpoints") or []]
    return max(steps) if steps else None


def refresh(store: Store, run: Run, backend: Backend, *, timeout: float = 10.0) -> RunStatus:
    """Ask the nodes of a run that has not settled, derive its status and store it."""
    if run.settled:
        return RunStatus.from_run(run)
    answers = backend.poll(RunRef(run.run_id, run.plan), timeout=timeout)
    run = _adopted(store, run, answers)
    status = _mended(run, derive(run, answers, time.time()))
    stored = store.record(run, status.state, status.reason, status.settled, status.as_dict())
    if stored.attempt != run.attempt or (stored.settled and not status.settled):
        return RunStatus.from_run(stored)
    return status


def _adopted(store: Store, run: Run, answers: PerNode[dict[str, Any]]) -> Run:
    """The run at the attempt that its nodes are at: a scheduler begins attempts by itself."""
    begun = [one["attempt"] for one in answers.values() if not isinstance(one, NodeError) and "scheduler" in one]
    newest = max(begun, default=0)
    return store.adopt(run, newest) if newest > run.attempt else run


def _mended(run: Run, status: RunStatus) -> RunStatus:
    """A failed attempt of a run whose supervisor is at work is not the run's end: it decides what follows."""
    if status.state is not State.FAILED or not run.supervised or run.supervisor == process_identity(os.getpid()):
        return status
    return replace(status, state=State.PREPARING, reason="recovering", settled=False)


def supervision_of(run: Run) -> dict[str, Any] | None:
    """Who supervises a run, and what came of it; None where the job asks for no supervision.

    alive: whether a supervisor is at work; restarts: in a row, of ``max``; total: ever; excluded: node -> reason.
    """
    restart = run.plan.restart
    if not restart.get("max"):
        return None
    memory = run.supervision
    excluded = {name: one["reason"] for name, one in memory.get("excluded", {}).items()}
    return {
        "alive": run.supervised,
        "pid": int(run.supervisor.split(":")[0]) if run.supervised else None,
        "max": restart["max"],
        "restarts": memory.get("restarts", 0),
        "total": memory.get("total", 0),
        "excluded": excluded,
        "spares": [node.name for node in run.plan.spares if node.name not in excluded],
        "gave_up": memory.get("gave_up", ""),
    }


def unsupervised(run: Run) -> str:
    """What to tell where a run's job wants a supervisor and none is at work; empty otherwise."""
    over = run.state in (State.SUCCEEDED, State.CANCELLED) or bool(run.supervision.get("gave_up"))
    if over or not run.plan.restart.get("max") or run.supervised or run.state is State.PREPARING:
        return ""
    return f"nobody supervises {run.run_id}: `ostrain supervise {run.run_id} --detach` takes it over"

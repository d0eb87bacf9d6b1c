"""The verbs of a run: submit, resume, cancel, remove. They talk to the store and to one backend, never to a person;
``say`` receives one line at each step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cluster.backend import Backend, NodeError, PerNode, RunRef
from ostrain.errors import OstrainError
from ostrain.plan import LaunchPlan
from ostrain.states import ExitCode, State
from ostrain.status import RunStatus, refresh
from ostrain.store import Run, Store

T = TypeVar("T")
Say = Callable[[str], None]


class NodesFailed(OstrainError):
    """One or more nodes refused; carries every node's error, prints them all."""

    def __init__(self, doing: str, failures: Mapping[str, NodeError], total: int, *, note: str = "") -> None:
        worst = max(failure.exit_code for failure in failures.values())
        super().__init__(f"{doing} failed on {len(failures)} of {total} nodes", exit_code=worst, why=note)
        self.failures = dict(failures)

    def __str__(self) -> str:
        return "\n".join(dict.fromkeys(map(str, self.failures.values()))) + "\n\n" + super().__str__()


def raise_failures(doing: str, answers: PerNode[Any], *, note: str = "") -> None:
    failures = {name: answer for name, answer in answers.items() if isinstance(answer, NodeError)}
    if failures:
        raise NodesFailed(doing, failures, len(answers), note=note)


def submit(
    store: Store,
    backend: Backend,
    plan: LaunchPlan,
    *,
    job_path: str,
    bundle: Path,
    secrets: Mapping[str, str],
    say: Say,
) -> Run:
    """Check the nodes, stage and start a new run. Whatever fails, no process and no file of it stays behind."""
    raise_failures("the check", backend.probe(plan.everywhere()))
    run = store.add(plan, job_path, str(bundle))
    try:
        _stage_and_start(backend, run, bundle, secrets, say)
    except BaseException:
        _undo(store, backend, run, say)
        raise
    return store.release(run.run_id, State.RUNNING, "running")


def _stage_and_start(backend: Backend, run: Run, bundle: Path, secrets: Mapping[str, str], say: Say) -> None:
    ref = RunRef(run.run_id, run.plan)
    count = len(run.plan.nodes)
    say(f"staging {run.run_id} on {count} node{'s' if count > 1 else ''}")
    raise_failures("staging", backend.stage(ref, bundle))
    if run.attempt == 1 and run.plan.spares:
        say(f"staging {len(run.plan.spares)} spare{'s' if len(run.plan.spares) > 1 else ''}")
        spares = run.plan.only({node.name for node in run.plan.spares})
        raise_failures("staging the spares", backend.stage(RunRef(run.run_id, spares), bundle))
    say(f"starting {run.plan.world} workers")
    raise_failures("the start", backend.start(ref, run.attempt, secrets))


def _undo(store: Store, backend: Backend, run: Run, say: Say) -> None:
    """Take back a submit that failed or was interrupted half way."""
    ref = RunRef(run.run_id, run.plan.everywhere())
    stopped = _without_missing(backend.stop(ref, grace=2.0, reason="start_failed"))
    removed = _without_missing(backend.remove(ref))
    left = sorted({name for name, one in [*stopped.items(), *removed.items()] if isinstance(one, NodeError)})
    if left:
        say(f"could not clean up on {', '.join(left)}; `ostrain rm {run.run_id}` tries again")
        store.release(run.run_id, State.FAILED, "start_failed")
    else:
        store.delete(run.run_id)


def resume(store: Store, backend: Backend, run: Run, *, secrets: Mapping[str, str], say: Say) -> Run:
    """Start the next attempt of a run that has ended; the payload goes on from its newest complete checkpoint.

    A run that its supervisor had given up gets all its restarts again; nodes that were excluded stay so until it needs
    them."""
    status = refresh(store, run, backend)
    if status.state is State.SUCCEEDED:
        raise OstrainError(f"run {run.run_id} has succeeded; there is nothing to resume", exit_code=ExitCode.USAGE)
    if not status.state.final:
        raise OstrainError(
            f"run {run.run_id} is {status.state.value}",
            next_step=f"ostrain cancel {run.run_id}, then resume",
            exit_code=ExitCode.USAGE,
        )
    if run.supervision:
        store.remember(run.run_id, {**run.supervision, "restarts": 0, "faults": [], "gave_up": ""})
    run = store.get(run.run_id)  # a scheduler may have begun attempts by itself
    raise_failures("the check", backend.probe(run.plan))
    claimed = store.claim(run, run.attempt + 1)
    ref = RunRef(run.run_id, run.plan)
    try:
        say(f"making sure that attempt {run.attempt} is over")
        reports = backend.stop(ref, grace=5.0, reason="superseded")
        raise_failures("ending the last attempt", _without_missing(reports))
        _refuse_survivors(run.run_id, reports)
        _stage_and_start(backend, claimed, Path(run.bundle), secrets, say)
    except BaseException:
        backend.stop(ref, grace=2.0, reason="start_failed")
        store.release(run.run_id, State.FAILED, "start_failed")
        raise
    return store.release(run.run_id, State.RUNNING, "running")


def _without_missing(answers: Mapping[str, T | NodeError]) -> PerNode[T]:
    """A node that never had the run has nothing to end or delete."""
    return {name: one for name, one in answers.items() if not (isinstance(one, NodeError) and one.kind == "no_run")}


def _refuse_survivors(run_id: str, reports: PerNode[dict[str, Any]]) -> None:
    for name, report in reports.items():
        if isinstance(report, dict) and report["survivors"]:
            pids = ", ".join(f"{one['pid']} ({one['state']})" for one in report["survivors"])
            raise OstrainError(
                f"processes of {run_id} outlived SIGKILL",
                where=f"node {name}",
                why=f"pids {pids}; state D means the kernel waits for a device",
                next_step="reboot the node, then resume",
                exit_code=ExitCode.SURVIVORS,
            )


@dataclass(frozen=True)
class Cancelled:
    """What a cancel did: node -> kill report, or why that node could not be reached."""

    run_id: str
    reports: dict[str, dict[str, Any]]
    errors: dict[str, NodeError]

    @property
    def survivors(self) -> int:
        return sum(len(report["survivors"]) for report in self.reports.values())

    @property
    def exit_code(self) -> int:
        if self.survivors:
            return int(ExitCode.SURVIVORS)
        return int(ExitCode.UNREACHABLE) if self.errors else int(ExitCode.OK)

    def as_dict(self) -> dict[str, Any]:
        errors = {name: {"kind": error.kind, "what": error.what} for name, error in self.errors.items()}
        return {"run_id": self.run_id, "exit_code": self.exit_code, "nodes": self.reports, "errors": errors}


def cancel(store: Store, backend: Backend, run: Run, *, grace: float) -> Cancelled:
    """End every process of a run, and only of it. A run that had ended keeps its state; leftovers are still swept."""
    store.want(run.run_id, "cancel")  # its supervisor must not start what is ended here
    before = RunStatus.from_run(run) if run.settled else refresh(store, run, backend)
    answers = backend.stop(RunRef(run.run_id, run.plan.everywhere()), grace=grace)
    reports = {name: answer for name, answer in answers.items() if not isinstance(answer, NodeError)}
    errors = {
        name: answer for name, answer in answers.items() if isinstance(answer, NodeError) and answer.kind != "no_run"
    }
    outcome = Cancelled(run.run_id, reports, errors)
    given_up = set(run.supervision.get("excluded", {})) - {node.name for node in run.plan.nodes}
    if not set(errors) - given_up and (not before.state.final or outcome.survivors):
        _record_cancel(store, backend, run, outcome)
    return outcome


def _record_cancel(store: Store, backend: Backend, run: Run, outcome: Cancelled) -> None:
    latest = refresh(store, store.get(run.run_id), backend)
    reason = "survivors" if outcome.survivors else "cancelled"
    status = {**latest.as_dict(), "state": State.CANCELLED.value, "reason": reason, "kill_reports": outcome.reports}
    store.override(store.get(run.run_id), State.CANCELLED, reason, status)


def remove(store: Store, backend: Backend, run: Run) -> None:
    """Delete a run's directories on every node, its checkpoints among them, and its row."""
    status = refresh(store, run, backend)
    if not status.state.final:
        raise OstrainError(
            f"run {run.run_id} is {status.state.value}",
            next_step=f"ostrain cancel {run.run_id}, then rm",
            exit_code=ExitCode.USAGE,
        )
    answers = backend.remove(RunRef(run.run_id, run.plan.everywhere()))
    raise_failures("the removal", _without_missing(answers), note="the run is kept in the list")
    store.delete(run.run_id)

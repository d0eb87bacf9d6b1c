"""One run of an entry, through the same doors as ``ostrain submit``: start, watch to the end, collect, remove."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from cluster.backend import Backend, NodeError, RunRef
from cluster.backends import open_backend
from ostrain.bench.measure import Measured, Record, measure, parse_lines
from ostrain.errors import OstrainError
from ostrain.lifecycle import Say, cancel, remove, submit
from ostrain.plan import LaunchPlan, NodePlan
from ostrain.progress import Progress
from ostrain.states import State
from ostrain.status import RunStatus
from ostrain.store import Run, Store
from ostrain.talk import age
from ostrain.watch import settle, watch


@dataclass(frozen=True)
class Job:
    """What a run needs. job_path: shown by ``ostrain status``; warmup: steps that are not counted."""

    plan: LaunchPlan
    job_path: str
    bundle: Path
    secrets: Mapping[str, str]
    warmup: int
    timeout: float
    keep: bool


@dataclass(frozen=True)
class Outcome:
    """How it went: ``reason`` is done, or why there are no numbers. kept: the run is still in the list of runs."""

    run_id: str
    reason: str
    measured: Measured | None
    kept: bool = False


@dataclass
class Deadline:
    """Ends a run that takes too long; from a thread of its own, since watching blocks."""

    store_path: Path
    run: Run
    seconds: float
    passed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._timer = threading.Timer(self.seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self.passed:
            self._timer.join(timeout=60.0)

    def _end(self) -> None:
        self.passed = True
        store = Store(self.store_path)  # SQLite connections belong to one thread
        backend = open_backend(self.run.plan)
        try:
            cancel(store, backend, store.get(self.run.run_id), grace=5.0)
        finally:
            backend.close()
            store.close()


def run_once(
    store: Store, backend: Backend, job: Job, show: Progress, say: Say, started: Callable[[str], None]
) -> Outcome:
    """Start the job, wait for its end, measure it. ``started`` is told the run's id as soon as it has one.

    A failure of the run is an outcome, and it stays, as the evidence. OstrainError: it could not be started.
    KeyboardInterrupt passes through when the run has been ended and removed.
    """
    run = submit(
        store, backend, job.plan, job_path=job.job_path, bundle=job.bundle, secrets=job.secrets, say=lambda _: None
    )
    try:
        started(run.run_id)
        with Deadline(store.path, run, job.timeout) as deadline, show:
            for news in watch(store, backend, run):
                show.show(news)
            told = settle(store, backend, run)
        outcome = _outcome(backend, run, told, job, deadline.passed)
    except KeyboardInterrupt:
        say(f"interrupted; ending {run.run_id}")
        end(store, backend, run, say)
        raise
    except OstrainError as error:
        say(str(error))
        cancelled = cancel(store, backend, run, grace=5.0)
        left = "" if cancelled.exit_code == 0 else "; it may still run"
        outcome = Outcome(run.run_id, f"lost: {error.what}{left}", None)
    if outcome.measured is not None and not job.keep:
        return _removed(store, backend, run, outcome, say)
    return Outcome(outcome.run_id, outcome.reason, outcome.measured, kept=True)


def _outcome(backend: Backend, run: Run, told: RunStatus, job: Job, timed_out: bool) -> Outcome:
    if timed_out and told.state is not State.SUCCEEDED:
        return Outcome(run.run_id, f"timeout: took longer than {age(job.timeout)}", None)
    if not told.state.final:
        return Outcome(run.run_id, "unreachable: the nodes stopped answering before its end was seen", None)
    if told.state is not State.SUCCEEDED:
        return Outcome(run.run_id, _why(told), None)
    try:
        ranks, events = collect(backend, run)
        return Outcome(run.run_id, "done", measure(ranks, events, job.warmup))
    except OstrainError as error:
        return Outcome(run.run_id, f"no measurement: {error.what}" + (f" ({error.why})" if error.why else ""), None)


def _why(told: RunStatus) -> str:
    """Reason and first fault in one line."""
    fault = told.fault or {}
    message = fault.get("message") or {}
    place = f" on {fault['node']}" if fault.get("node") else ""
    place += f" rank {fault['rank']}" if fault.get("rank") is not None else ""
    said = f": {message['what']}" if message.get("what") else ""
    said += f" ({message['where']})" if said and message.get("where") else ""
    return f"{told.reason}{place}{said}"


def collect(backend: Backend, run: Run) -> tuple[dict[int, list[Record]], list[Record]]:
    """Metrics of every rank, and the first node's events. Raises NodeError, OstrainError."""
    ref, nodes = RunRef(run.run_id, run.plan), run.plan.nodes

    def of_node(node: NodePlan) -> dict[int, list[Record]]:
        files = {rank: f"metrics/rank-{rank}.jsonl" for rank in node.ranks}
        return {rank: parse_lines(backend.fetch(ref, node.name, path)) for rank, path in files.items()}

    # The run was started through this backend: its clients exist, and each thread uses one of them.
    with ThreadPoolExecutor(max_workers=min(16, len(nodes))) as pool:
        ranks = {rank: records for answer in pool.map(of_node, nodes) for rank, records in answer.items()}
    return ranks, parse_lines(backend.fetch(ref, nodes[0].name, "events.jsonl"))


def _removed(store: Store, backend: Backend, run: Run, outcome: Outcome, say: Say) -> Outcome:
    try:
        remove(store, backend, store.get(run.run_id))
    except (NodeError, OstrainError) as error:
        # The numbers are here; a folder that stays is not worth losing them.
        say(f"{run.run_id} could not be removed: {error.what}; `ostrain rm {run.run_id}` tries again")
        return Outcome(outcome.run_id, outcome.reason, outcome.measured, kept=True)
    return outcome


def end(store: Store, backend: Backend, run: Run, say: Say) -> None:
    """Cancel a run and remove it, whatever state it is in; tell what is left."""
    deadline = time.monotonic() + 30.0
    outcome = cancel(store, backend, run, grace=5.0)
    while outcome.errors and time.monotonic() < deadline:
        time.sleep(1.0)
        outcome = cancel(store, backend, run, grace=5.0)
    if outcome.exit_code:
        say(f"{run.run_id} could not be ended everywhere; `ostrain cancel {run.run_id}` tries again")
        return
    try:
        remove(store, backend, store.get(run.run_id))
    except (NodeError, OstrainError) as error:
        say(f"{run.run_id} could not be removed: {error.what}")

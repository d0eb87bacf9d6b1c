"""From a fault to the next attempt: end what is left, decide, fence, wait, compile for the nodes there are, start."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from cluster.backend import NodeError, PerNode, RunRef
from ostrain.errors import OstrainError
from ostrain.states import State
from ostrain.status import derive
from ostrain.store import Run
from ostrain.supervisor import pieces
from ostrain.supervisor.bounded import each
from ostrain.supervisor.crew import Crew, Withdrawn
from ostrain.supervisor.decide import GiveUp, Restart, Site, decide
from ostrain.supervisor.evidence import find_evidence
from ostrain.supervisor.health import Fault, Health
from ostrain.supervisor.resolved import best_fit, recompiled, shape_of

GRACE = 5.0  # seconds between SIGTERM and SIGKILL
STOP_BOUND = 25.0  # for all nodes together; who has not answered by then is fenced
ASK_BOUND = 8.0
LOOK_BOUND = 5.0
DRAIN_BOUND = 120.0  # devices that are still held after this are told; the start will say what it thinks of them


def recover(crew: Crew, run: Run, fault: Fault, health: Health) -> Run | None:
    """The run with its next attempt running; None when it was given up. Withdrawn when it is not ours any more."""
    trained = health.trained(time.monotonic())
    names = [node.name for node in run.plan.nodes]
    reachable = [name for name in names if name not in fault.lost]
    while True:
        fault = _who(crew, run, fault)
        _tell(crew, run, fault)
        crew.still_ours(run)
        answering, survivors = _end(crew, run, fault, reachable)
        if survivors:
            why = "processes there outlived SIGKILL"
            fault = dataclasses.replace(fault, reason="survivors", node=survivors[0], rank=None, detail=why)
        decision = _decide(crew, run, fault, trained, answering)
        if isinstance(decision, GiveUp):
            _give_up(crew, run, fault, decision)
            return None
        run, failed = _carry_out(crew, run, fault, decision, answering)
        if failed is None:
            return run
        fault, trained = failed, 0.0
        reachable = [node.name for node in run.plan.nodes if node.name not in fault.lost]


def _who(crew: Crew, run: Run, fault: Fault) -> Fault:
    """Of a hang: the rank that the others wait for. Its processes are still there to be asked."""
    if fault.reason != "hung":
        return fault
    from ostrain.stuck import look

    report = look(crew.backend, RunRef(run.run_id, run.plan), timeout=LOOK_BOUND)
    suspect = report.suspect
    if suspect is None:
        return fault
    detail = f"{fault.detail}; {suspect}"
    facts: dict[str, Any] = {"node": suspect.node, "rank": suspect.rank}
    crew.note(run.attempt, "stuck", detail=str(suspect), frame=suspect.frame, why=suspect.why, **facts)
    return dataclasses.replace(fault, node=suspect.node, rank=suspect.rank, detail=detail)


def _tell(crew: Crew, run: Run, fault: Fault) -> None:
    where = f"node {fault.node}" if fault.node else "the run"
    where += f" rank {fault.rank}" if fault.rank is not None else ""
    crew.note(
        run.attempt, "detected", f"{where}: {fault.reason}" + (f": {fault.detail}" if fault.detail else ""),
        node=fault.node, rank=fault.rank, reason=fault.reason, detail=fault.detail,
        step=fault.step, fault_time=fault.time, lost=list(fault.lost),
    )  # fmt: skip


def _end(crew: Crew, run: Run, fault: Fault, reachable: Collection[str]) -> tuple[set[str], list[str]]:
    """End what is left of the attempt: (nodes that answered, those of them with processes that cannot be ended)."""
    reason = fault.reason if fault.reason in ("hung", "node_lost") else "peer_failed"

    def stop(name: str) -> dict[str, Any]:
        only = RunRef(run.run_id, run.plan.only({name}))
        report: dict[str, Any] = _value(crew.backend.stop(only, grace=GRACE, reason=reason), name)
        return report

    reports = each(reachable, stop, STOP_BOUND)
    answered = {name for name, one in reports.items() if not isinstance(one, NodeError) or one.kind == "no_run"}
    good = {name: one for name, one in reports.items() if not isinstance(one, NodeError)}
    survivors = [name for name, one in good.items() if one["survivors"]]
    killed = sum(len(one["killed"]) for one in good.values())
    missing = sorted({node.name for node in run.plan.nodes} - answered)
    detail = f"{killed} processes ended on {len(good)} nodes" + (
        f"; no answer: {', '.join(missing)}" if missing else ""
    )
    crew.note(run.attempt, "stopped", detail=detail, killed=killed, missing=missing)
    return answered, survivors


def _value(answers: PerNode[Any], name: str) -> Any:
    """The answer of one node; its error raised."""
    answer = answers[name]
    if isinstance(answer, NodeError):
        raise answer
    return answer


def _decide(crew: Crew, run: Run, fault: Fault, trained: float, answering: set[str]) -> Restart | GiveUp:
    crew.note_fences(run)
    plan = run.plan
    finding = find_evidence(
        crew.backend, RunRef(run.run_id, plan), run.attempt, answering, crew.settings.log_policies
    )  # fmt: skip
    if finding is not None:
        crew.tell_finding(run, finding)
    wanted = shape_of(plan)
    spares = [node.name for node in plan.spares] if wanted is not None else []
    site = Site(
        active=tuple(node.name for node in plan.nodes),
        answering=frozenset(answering | _asked(crew, run, spares)),
        spares=tuple(spares),
        wanted=wanted.nodes if wanted is not None else len(plan.nodes),
        fit=lambda count: best_fit(plan, count),
    )
    return decide(crew.memory, fault, run.attempt, trained, site, crew.settings, finding)


def _asked(crew: Crew, run: Run, names: Collection[str]) -> set[str]:
    """Which of the nodes answer now."""

    def ask(name: str) -> Any:
        return _value(crew.backend.poll(RunRef(run.run_id, run.plan.only({name})), timeout=ASK_BOUND), name)

    answers = each(names, ask, ASK_BOUND)
    return {name for name, one in answers.items() if not isinstance(one, NodeError) or one.kind == "no_run"}


def _give_up(crew: Crew, run: Run, fault: Fault, decision: GiveUp) -> None:
    crew.remember(run, decision.memory)
    crew.raise_fences(run)
    crew.note(
        run.attempt, "gave_up", f"no further attempt: {decision.why}",
        node=fault.node, rank=fault.rank, reason=fault.reason, detail=decision.why,
    )  # fmt: skip
    current = crew.store.get(run.run_id)
    ref = RunRef(run.run_id, run.plan)
    told = derive(current, crew.backend.poll(ref, timeout=ASK_BOUND), time.time())
    raw = dict(fault.raw or {"message": {"what": fault.detail}, "tail": [], "signal": None, "exit_code": None})
    raw.update(reason=fault.reason, node=fault.node, rank=fault.rank, time=fault.time)
    status = {**told.as_dict(), "state": State.FAILED.value, "reason": fault.reason, "fault": raw, "settled": True}
    crew.store.override(current, State.FAILED, fault.reason, status)


def _carry_out(
    crew: Crew, run: Run, fault: Fault, decision: Restart, answering: Collection[str]
) -> tuple[Run, Fault | None]:
    """The next attempt, and the fault where it could not be started. answering: nodes of the attempt that failed."""
    _announce(crew, run, fault, decision)
    old = run
    try:
        run = crew.store.claim(run, run.attempt + 1, reason="recovering")
    except OstrainError as error:
        raise Withdrawn(error.what) from error
    crew.remember(run, decision.memory)
    crew.raise_fences(run)
    crew.pause(run, decision.wait)
    try:
        _await(crew, run, decision.awaited)
        if list(decision.nodes) != [node.name for node in run.plan.nodes] or decision.fit is not None:
            run = crew.store.replan(run.run_id, recompiled(run.plan, decision.nodes, decision.fit))
        _drain(crew, run)
        for line in pieces.bring(crew.backend, crew.recovery, RunRef(run.run_id, run.plan), old.plan.only(answering)):
            crew.note(run.attempt, "copied", line, detail=line)
        crew.still_ours(run)
        return _start(crew, run), None
    except (OstrainError, OSError) as error:
        crew.still_ours(run)
        return run, _start_fault(error)


def _announce(crew: Crew, run: Run, fault: Fault, decision: Restart) -> None:
    limit = crew.settings.max
    text = f"{decision.why}; restart {decision.memory.restarts} of {limit}"
    text += f" in {decision.wait:g} s" if decision.wait else ""
    crew.note(
        run.attempt, "decided", text, node=fault.node, rank=fault.rank, reason=fault.reason, detail=decision.why,
        action=decision.word, nodes=list(decision.nodes), wait=decision.wait, restarts=decision.memory.restarts,
    )  # fmt: skip
    for name, reason in decision.excluded:
        detail = f"attempts before {run.attempt + 1} are over there"
        crew.note(run.attempt, "fenced", f"node {name} is given up: {reason}", node=name, reason=reason, detail=detail)
    if decision.fit is not None:
        wanted = shape_of(run.plan)
        line = decision.fit.describe(wanted) if wanted is not None else ""
        crew.note(run.attempt, "shrunk", line, detail=line, error=decision.fit.error)


def _await(crew: Crew, run: Run, names: Collection[str]) -> None:
    """Nodes that have no substitute have to come back."""
    missing, deadline = set(names), time.monotonic() + crew.settings.start_timeout
    while missing:
        missing -= _asked(crew, run, missing)
        if missing and time.monotonic() > deadline:
            raise NodeError("unreachable", "the node did not come back", node=sorted(missing)[0])
        if missing:
            crew.pause(run, 3.0)
    if names:
        crew.tell_back(run, names)


def _drain(crew: Crew, run: Run) -> None:
    """Devices are given back some time after their processes have gone; a start before that fails (EJ0001)."""
    if run.plan.device.lower() != "ascend":
        return
    begun = time.monotonic()
    while True:
        answers = crew.recovery.holders(run.plan.nodes, timeout=ASK_BOUND)
        held = {name: one for name, one in answers.items() if not isinstance(one, NodeError) and one}
        waited = time.monotonic() - begun
        if not held or waited > DRAIN_BOUND:
            break
        crew.pause(run, 2.0)
    told = "; ".join(f"{name}: {', '.join(one)}" for name, one in held.items())
    detail = f"after {waited:.0f} s" + (f", still held: {told}" if told else "")
    crew.note(run.attempt, "drained", f"devices: {detail}" if told else "", detail=detail)


def _start(crew: Crew, run: Run) -> Run:
    """Stage and start. OstrainError where a node refuses."""
    from ostrain.lifecycle import raise_failures

    ref = RunRef(run.run_id, run.plan)
    names = [node.name for node in run.plan.nodes]
    crew.note(run.attempt, "restarting", f"attempt {run.attempt} on {', '.join(names)}", detail=", ".join(names))
    raise_failures("staging", crew.backend.stage(ref, Path(run.bundle)))
    crew.still_ours(run)
    raise_failures("the start", crew.backend.start(ref, run.attempt, crew.secrets))
    try:
        crew.still_ours(run)
    except Withdrawn:
        crew.backend.stop(ref, grace=GRACE)
        raise
    run = crew.store.release(run.run_id, State.RUNNING, "running")
    crew.note(run.attempt, "restarted", detail=f"{run.plan.world} workers", nodes=names)
    return run


def _start_fault(error: OstrainError | OSError) -> Fault:
    """What kept an attempt from starting, as a fault of it."""
    from ostrain.lifecycle import NodesFailed

    failures = dict(error.failures) if isinstance(error, NodesFailed) else {}
    if isinstance(error, NodeError):
        failures = {error.node: error}
    lost = tuple(name for name, one in failures.items() if one.kind == "unreachable")
    node = next(iter(lost or failures), None)
    what = failures[node].what if node is not None else str(error)
    reason = "node_lost" if lost else "disk_full" if node and failures[node].kind == "disk_full" else "start_failed"
    return Fault(reason, node, None, None, time.time(), what, lost)

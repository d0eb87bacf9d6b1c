"""The canary: a run of its own through the job's launch files and agents, one AllReduce over all ranks, taken back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.backend import Backend, NodeError, PerNode, RunRef
from ostrain.errors import OstrainError
from ostrain.lifecycle import submit
from ostrain.plan import LaunchPlan, NodePlan, PlanFile
from ostrain.preflight.verdict import Level, Verdict, fail, ok, warn
from ostrain.ranktable.text import listed
from ostrain.states import ExitCode
from ostrain.store import Store

NAME = "canary"
_POLL = 0.5
_FINAL = ("SUCCEEDED", "FAILED", "CANCELLED")
_JOINED = ("joined", "done")
Say = Callable[[str], None]


def canary_plan(plan: LaunchPlan) -> LaunchPlan:
    """The job's plan with the canary in place of its task. Pure."""
    old = f"-m models.{plan.task} --config {plan.task}.yaml"

    def changed(node: NodePlan) -> NodePlan:
        files = tuple(
            PlanFile(file.path, file.text.replace(old, f"-m models.{NAME}"), file.mode)
            for file in node.files
            if file.path != f"{plan.task}.yaml"
        )
        if not any(f"-m models.{NAME}" in file.text for file in files):
            raise ValueError(f"no launch file of {node.name} starts {old}")
        return replace(node, files=files)

    nodes = tuple(changed(node) for node in plan.nodes)
    checks = {**plan.checks, "min_free_bytes": 0}
    return replace(
        plan, name=NAME, task=NAME, steps=1, nodes=nodes, spares=(), restart={}, job={}, sources={}, checks=checks
    )


def canary(
    store: Store,
    backend: Backend,
    plan: LaunchPlan,
    *,
    bundle: Path,
    secrets: Mapping[str, str],
    timeout: float,
    say: Say,
) -> list[Verdict]:
    """Run it and judge. Nothing of it stays, unless a node stops answering: then ``ostrain rm`` takes it away.

    timeout: seconds from the start until all ranks must have met.
    """
    say(f"canary: {plan.world} workers start and add up one number")
    try:
        run = submit(store, backend, canary_plan(plan), job_path=NAME, bundle=bundle, secrets=secrets, say=_silent)
    except OstrainError as error:
        return [_as_canary(fail(plan.nodes[0].name, error.what, str(error), error.next_step))]
    ref = RunRef(run.run_id, run.plan)
    try:
        began = time.monotonic()
        answers = _until_final(backend, ref, timeout)
        verdicts = [_as_canary(one) for one in judge(run.plan, answers, time.monotonic() - began, timeout)]
        if all(one.level is Level.OK for one in verdicts):
            verdicts = [_as_canary(one) for one in _timings(backend, ref)]
    finally:
        _take_back(store, backend, ref, say)
    return verdicts


def _silent(text: str) -> None:
    """Staging and starting of the canary are no news."""


def _as_canary(verdict: Verdict) -> Verdict:
    return replace(verdict, check=NAME)


def _until_final(backend: Backend, ref: RunRef, timeout: float) -> PerNode[dict[str, Any]]:
    """The nodes' last answers: all ended, one failed (the others have a moment to tell), or the time is over."""
    end = time.monotonic() + timeout
    while True:
        answers = backend.poll(ref)
        states = [answer["state"] for answer in answers.values() if not isinstance(answer, NodeError)]
        over = len(states) == len(answers) and all(state in _FINAL for state in states)
        if over or "FAILED" in states or time.monotonic() > end:
            return answers
        time.sleep(_POLL)


def judge(plan: LaunchPlan, answers: PerNode[dict[str, Any]], seconds: float, timeout: float) -> Iterator[Verdict]:
    """What the nodes' statuses say: a fault where one was recorded, else the ranks that did not arrive. Pure."""
    faults = [(node, answer["fault"]) for node, answer in answers.items()
              if not isinstance(answer, NodeError) and answer.get("fault")]  # fmt: skip
    first = min(faults, key=lambda one: float(one[1]["time"]), default=None)
    phases = dict(_phases(plan, answers))
    behind = {rank for rank, phase in phases.items() if phase not in _JOINED}
    done = all(phase == "done" for phase in phases.values())
    for node in plan.nodes:
        answer = answers[node.name]
        absent = sorted(behind & set(node.ranks))
        if isinstance(answer, NodeError):
            yield Verdict(node.name, Level.FAIL, answer.what, answer.why, answer.next_step, int(ExitCode.UNREACHABLE))
        elif first is not None and first[0] == node.name:
            yield _fault(node.name, first[1])
        elif done:
            yield ok(node.name, f"{len(node.ranks)} ranks met the others in {seconds:.0f} s")
        elif absent and first is None and len(behind) < len(phases):
            yield _absent(node.name, absent, phases, answer, timeout)
        elif first is None and len(behind) == len(phases):
            yield fail(
                node.name, f"no rank arrived within {timeout:g} s", _stages(absent, phases),
                "look at the way between the nodes (`address`, `interface`, firewalls), or raise check.canary_timeout",
            )  # fmt: skip


def _phases(plan: LaunchPlan, answers: PerNode[dict[str, Any]]) -> Iterator[tuple[int, str]]:
    """(rank, how far it came); ``nothing`` for one whose worker never told anything."""
    for node in plan.nodes:
        answer = answers[node.name]
        beats = {} if isinstance(answer, NodeError) else answer.get("heartbeat") or {}
        for rank in node.ranks:
            yield rank, str((beats.get(str(rank)) or {}).get("phase", "nothing"))


def _stages(ranks: list[int], phases: Mapping[int, str]) -> str:
    words = {"nothing": "did not start", "starting": "started MindSpore, but did not join"}
    found = []
    for phase in dict.fromkeys(phases[rank] for rank in ranks):
        own = [rank for rank in ranks if phases[rank] == phase]
        found.append(f"rank {listed(own)} {words.get(phase, phase)}")
    return "; ".join(found)


def _absent(node: str, ranks: list[int], phases: Mapping[int, str], answer: dict[str, Any], timeout: float) -> Verdict:
    running = {worker["rank"]: worker for worker in answer.get("workers") or []}
    pids = ", ".join(f"pid {running[rank]['pid']}" for rank in ranks if rank in running)
    what = f"rank {listed(ranks)} did not arrive within {timeout:g} s"
    why = _stages(ranks, phases) + (f" ({pids})" if pids else "") + "; the other ranks waited for it"
    return fail(node, what, why, f"look at {node}: its devices, its links, what else runs there")


def _fault(node: str, fault: dict[str, Any]) -> Verdict:
    message = fault.get("message") or {}
    how = f"was killed by {fault['signal']}" if fault.get("signal") else f"ended with {fault.get('exit_code')}"
    who = f"rank {fault['rank']}" if fault.get("rank") is not None else "the launcher"
    tail = [line for line in fault.get("tail") or [] if line.strip()]
    why = message.get("why") or (tail[-1][:300] if tail else "")
    return fail(node, message.get("what") or f"{who} {how}", why, message.get("next") or f"look at {node}")


def _timings(backend: Backend, ref: RunRef) -> Iterator[Verdict]:
    """How long it took each node; a warning for one far slower than the others."""
    told = json.loads(backend.fetch(ref, ref.plan.nodes[0].name, "canary.json"))
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in told["ranks"]:
        rows.setdefault(row["node"], []).append(row)
    usual = sorted(float(row["join"]) for row in told["ranks"])[len(told["ranks"]) // 2]
    for node, own in rows.items():
        join = max(float(row["join"]) for row in own)
        large = max(float(row["large"]) for row in own)
        rate = told["bytes"] / max(large, 1e-9) / 2**20
        who = "rank" if len(own) == 1 else "ranks"
        what = f"{who} {listed(sorted(row['rank'] for row in own))} met in {join:.1f} s, 4 MB summed at {rate:.0f} MB/s"
        if join > 3 * usual + 10:
            yield warn(node, what, f"the others took {usual:.1f} s", "look at its disk and its load")
        else:
            yield ok(node, what)


def _take_back(store: Store, backend: Backend, ref: RunRef, say: Say) -> None:
    stopped = backend.stop(ref, grace=2.0)
    removed = backend.remove(ref)
    left = sorted({name for name, one in [*stopped.items(), *removed.items()]
                   if isinstance(one, NodeError) and one.kind != "no_run"})  # fmt: skip
    if left:
        say(f"the canary could not be taken back on {', '.join(left)}; later: ostrain cancel {ref.run_id}, "
            f"ostrain rm {ref.run_id}")  # fmt: skip
    else:
        store.delete(ref.run_id)

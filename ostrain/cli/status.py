"""``ostrain status``: one run in full."""

from __future__ import annotations

from typing import Any

import click

from ostrain.cli.common import json_option, opened_backend, opened_store
from ostrain.states import REASONS, ExitCode
from ostrain.status import RunStatus, refresh, supervision_of, unsupervised
from ostrain.store import Run
from ostrain.talk import emit_json, next_commands, since, table


@click.command()
@click.argument("run", default="last")
@json_option
def status(run: str, as_json: bool) -> int:
    """Tell the state of RUN (default: the newest), its workers, and the first fault where it failed.

    Exits with the class of the run's state: 0 while it runs or has succeeded, 1 failed, 5 cancelled, 7 survivors.
    """
    with opened_store() as store:
        if run == "last" and not store.all():
            if as_json:
                emit_json(None)
            else:
                click.echo("no runs yet; start one with: ostrain submit quickstart --follow", err=True)
            return int(ExitCode.OK)
        found = store.find(run)
        if found.settled:
            told = RunStatus.from_run(found)
        else:
            with opened_backend(found.plan) as backend:
                told = refresh(store, found, backend)
    if as_json:
        emit_json({**told.as_dict(), "supervision": supervision_of(found)})
    else:
        click.echo(describe(found, told))
    return told.exit_code


def describe(run: Run, told: RunStatus) -> str:
    """The status as text."""
    return "\n".join(_heading(run, told) + _fault_lines(told) + _worker_lines(run, told) + _next_lines(run, told))


def _heading(run: Run, told: RunStatus) -> list[str]:
    meaning = REASONS[told.reason].meaning if told.reason in REASONS else ""
    if told.waits_for:
        meaning = f"{told.waits_for} ({meaning})"
    lines = [f"{run.run_id}  {told.state.value}  {told.reason}: {meaning}"]
    if told.progress:
        progress = told.progress
        total = progress.get("steps") or run.plan.steps
        parts = [f"step {progress['step']}" + (f"/{total}" if total else "")]
        if progress.get("loss") is not None:
            parts.append(f"loss {progress['loss']:.4f}")
        if progress.get("seconds") is not None:
            parts.append(f"{progress['seconds']:.2f} s/step")
        lines.append("  " + ", ".join(parts))
    checkpoint = f"step {told.checkpoint}" if told.checkpoint is not None else "none yet"
    lines.append(f"  attempt {told.attempt}, newest checkpoint: {checkpoint}, submitted {since(run.created)} ago")
    lines += _job_lines(told)
    for node, why in sorted(told.unreachable.items()):
        lines.append(f"  node {node} does not answer: {why}")
    lines += _supervision_lines(run)
    if told.state.final and not told.settled and not told.unreachable:
        lines.append("  some nodes are still ending; ask again, or `ostrain cancel` to end them now")
    return lines


def _job_lines(told: RunStatus) -> list[str]:
    """What a scheduler says of the run's job."""
    job = next((one["scheduler"] for one in told.nodes.values() if (one.get("scheduler") or {}).get("job")), None)
    if job is None:
        return []
    where = f" on {job['hosts']}" if job.get("hosts") else ""
    starts = f", expected to start {job['starts']}" if job.get("starts") and not where else ""
    return [f"  Slurm job {job['job']}: {job['state']}{where}{starts}"]


def _supervision_lines(run: Run) -> list[str]:
    told = supervision_of(run)
    if told is None:
        return []
    counts = f"{told['restarts']} of {told['max']} restarts in a row used"
    if told["gave_up"]:
        lines = [f"  given up: {told['gave_up']}"]
    elif told["alive"]:
        lines = [f"  supervised by process {told['pid']}; {counts}"]
    else:
        hint = unsupervised(run)
        lines = [f"  {hint}"] if hint else []
    for node, why in told["excluded"].items():
        lines.append(f"  node {node} was given up: {why}")
    if told["spares"]:
        lines.append(f"  spares: {', '.join(told['spares'])}")
    return lines


def fault_title(fault: dict[str, Any]) -> str:
    """Who failed and how, in one line: node, rank, signal or exit code."""
    who = f"node {fault.get('node')}"
    if fault.get("rank") is not None:
        who += f" rank {fault['rank']}"
    if fault.get("signal"):
        return f"{who} was killed by {fault['signal']}"
    if fault.get("exit_code") is not None:
        return f"{who} ended with exit code {fault['exit_code']}"
    return f"{who}: {fault['reason']}"


def fault_message(fault: dict[str, Any]) -> list[str]:
    """What a failing payload said of itself: up to four lines, none where it could not say anything."""
    message = fault.get("message") or {}
    return [f"{label}: {message[label]}" for label in ("what", "where", "why", "next") if message.get(label)]


def _fault_lines(told: RunStatus) -> list[str]:
    fault = told.fault
    if not fault:
        return []
    lines = [f"  first fault: {fault_title(fault)} (attempt {told.attempt})"]
    lines += [f"    {line}" for line in fault_message(fault)]
    if fault.get("tail") and not fault.get("message"):
        lines.append(f"    last lines of {fault.get('log')}:")
        lines += [f"    | {line}" for line in fault["tail"][-8:]]
    return lines


def _worker_lines(run: Run, told: RunStatus) -> list[str]:
    rows = []
    for node in run.plan.nodes:
        answer = told.nodes.get(node.name, {})
        for worker in answer.get("workers", []):
            beat = (answer.get("heartbeat") or {}).get(str(worker["rank"]), {})
            ended = worker.get("signal") or worker.get("exit_code")
            rows.append([node.name, worker["rank"], worker["pid"], worker["state"], beat.get("step", "-")]
                        + [beat.get("phase", "-"), "-" if ended is None else ended])  # fmt: skip
    if not rows:
        return []
    body = table(rows, ("NODE", "RANK", "PID", "STATE", "STEP", "PHASE", "END"))
    return ["", *("  " + line for line in body.splitlines())]


def _next_lines(run: Run, told: RunStatus) -> list[str]:
    if not told.state.final:
        commands = [(f"ostrain logs -f {run.run_id}", "follow the logs of all nodes"),
                    (f"ostrain cancel {run.run_id}", "end it")]  # fmt: skip
    elif told.exit_code == 0:
        return []
    else:
        commands = [(f"ostrain logs {run.run_id}", "the whole log"),
                    (f"ostrain resume {run.run_id}", "go on from the newest checkpoint")]  # fmt: skip
    return ["", next_commands(commands)]

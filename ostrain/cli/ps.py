"""``ostrain ps``: the list of runs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click

from ostrain.cli.common import json_option, opened_backend, opened_store
from ostrain.status import RunStatus, refresh, unsupervised
from ostrain.store import Run, Store
from ostrain.talk import emit_json, since, table

HEADERS = ("ID", "STATE", "STEP", "s/STEP", "LOSS", "NODES", "ATTEMPT", "AGE", "REASON")


@click.command()
@click.option("-a", "--all", "show_all", is_flag=True, help="Also runs that ended more than a day ago.")
@json_option
def ps(show_all: bool, as_json: bool) -> None:
    """List runs, newest first: those at work and those of the last day."""
    import time

    with opened_store() as store:
        horizon = time.time() - 86400
        runs = [run for run in store.all() if show_all or not run.settled or run.created > horizon]
    with ThreadPoolExecutor(max_workers=8) as pool:
        statuses = list(pool.map(_status, runs))
    rows = [_row(run, status) for run, status in zip(runs, statuses, strict=True)]
    if as_json:
        emit_json(rows)
    elif rows:
        click.echo(table([[row[key] for key in HEADERS] for row in map(_shown, rows)], HEADERS))
    else:
        click.echo("no runs; start one with: ostrain submit quickstart --follow", err=True)


def _status(run: Run) -> RunStatus:
    if run.settled:
        return RunStatus.from_run(run)
    # SQLite connections belong to one thread.
    store = Store()
    try:
        with opened_backend(run.plan) as backend:
            return refresh(store, run, backend, timeout=5.0)
    finally:
        store.close()


def _row(run: Run, status: RunStatus) -> dict[str, Any]:
    progress = status.progress or {}
    return {
        "run_id": run.run_id,
        "name": run.name,
        "state": status.state.value,
        "reason": status.reason,
        "step": progress.get("step"),
        "steps": run.plan.steps,
        "loss": progress.get("loss"),
        "seconds_per_step": progress.get("seconds"),
        "nodes": len(run.plan.nodes),
        "attempt": run.attempt,
        "created": run.created,
        "unreachable": sorted(status.unreachable),
        "unsupervised": bool(unsupervised(run)),
    }


def _shown(row: dict[str, Any]) -> dict[str, object]:
    def number(key: str, form: str) -> str:
        return "-" if row[key] is None else format(row[key], form)

    return {
        "ID": row["run_id"],
        "STATE": row["state"],
        "STEP": f"{row['step'] or 0}/{row['steps']}",
        "s/STEP": number("seconds_per_step", ".2f"),
        "LOSS": number("loss", ".4f"),
        "NODES": row["nodes"],
        "ATTEMPT": row["attempt"],
        "AGE": since(row["created"]),
        "REASON": row["reason"]
        + (f" (no answer: {', '.join(row['unreachable'])})" if row["unreachable"] else "")
        + (" (unsupervised: ostrain supervise RUN)" if row["unsupervised"] else ""),
    }

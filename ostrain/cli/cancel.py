"""``ostrain cancel``: end a run, and show what was ended where."""

from __future__ import annotations

import click

from ostrain.cli.common import json_option, opened_run
from ostrain.lifecycle import Cancelled
from ostrain.lifecycle import cancel as cancel_run
from ostrain.talk import emit_json, table


@click.command()
@click.argument("run")
@click.option("--grace", default=10.0, show_default=True, help="Seconds between SIGTERM and SIGKILL.")
@json_option
def cancel(run: str, grace: float, as_json: bool) -> int:
    """End every process of RUN on every node, and nothing else; print what was ended where.

    Exits with 0 when nothing of the run is left, 7 when processes outlived SIGKILL, 4 when a node did not answer.
    """
    with opened_run(run) as (store, found, backend):
        outcome = cancel_run(store, backend, found, grace=grace)
    if as_json:
        emit_json(outcome.as_dict())
    else:
        click.echo(describe(outcome))
    for error in outcome.errors.values():
        click.echo(str(error), err=True)
    return outcome.exit_code


def describe(outcome: Cancelled) -> str:
    rows: list[list[object]] = []
    for node, report in sorted(outcome.reports.items()):
        for one in report["killed"]:
            rank = "-" if one.get("rank") is None else one["rank"]
            rows.append([node, rank, one["pid"], one["signal"], _short(one["command"])])
        for one in report["survivors"]:
            rows.append([node, "-", one["pid"], f"SURVIVES ({one['state']})", _short(one["command"])])
    if not rows:
        return f"{outcome.run_id}: no process of it was left on {len(outcome.reports)} nodes"
    ended = sum(len(report["killed"]) for report in outcome.reports.values())
    heading = f"{outcome.run_id}: {ended} processes ended, {outcome.survivors} left"
    return table(rows, ("NODE", "RANK", "PID", "BY", "COMMAND")) + "\n" + heading


def _short(command: str) -> str:
    return command if len(command) <= 70 else command[:67] + "..."

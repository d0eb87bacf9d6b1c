"""``ostrain resume``: another attempt of a run that has ended."""

from __future__ import annotations

from pathlib import Path

import click

from ostrain.cli.common import opened_run, resolved_secrets
from ostrain.cli.submit import after_start, follow_run
from ostrain.lifecycle import resume as resume_run
from ostrain.talk import next_commands, say


@click.command()
@click.argument("run")
@click.option("-f", "--follow", is_flag=True, help="Watch it to its end; exit with its class.")
@click.option("--report", type=click.Path(path_type=Path), help="With --follow: folder for the loss curve.")
def resume(run: str, follow: bool, report: Path | None) -> int:
    """Start the next attempt of RUN. Training goes on from its newest complete checkpoint."""
    with opened_run(run) as (store, found, backend):
        secrets = resolved_secrets(found.plan)
        started = resume_run(store, backend, found, secrets=secrets, say=say)
        click.echo(started.run_id)
        if follow:
            return follow_run(store, backend, started, report)
        if started.plan.restart:
            return after_start(store, started)
    commands = [(f"ostrain status {started.run_id}", "state, step, workers"),
                (f"ostrain logs -f {started.run_id}", "the logs of all nodes")]  # fmt: skip
    say(f"attempt {started.attempt} runs\n" + next_commands(commands))
    return 0

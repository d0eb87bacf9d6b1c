"""``ostrain rm``: delete a run for good."""

from __future__ import annotations

import sys

import click

from ostrain.cli.common import opened_run
from ostrain.cli.logs import forget
from ostrain.errors import OstrainError
from ostrain.lifecycle import remove
from ostrain.states import ExitCode
from ostrain.talk import say


@click.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def rm(runs: tuple[str, ...], yes: bool) -> None:
    """Delete RUNS that have ended: run directories on every node, checkpoints and logs among them."""
    for word in runs:
        with opened_run(word) as (store, run, backend):
            if not yes and not _confirmed(run.run_id):
                continue
            remove(store, backend, run)
            forget(run.run_id)
            say(f"removed {run.run_id}")


def _confirmed(run_id: str) -> bool:
    if not sys.stdin.isatty():
        raise OstrainError(
            f"rm deletes the checkpoints of {run_id}; nobody is here to confirm",
            next_step=f"ostrain rm --yes {run_id}",
            exit_code=ExitCode.USAGE,
        )
    return click.confirm(f"delete {run_id} with its checkpoints and logs on every node?")

"""``ostrain report``: one HTML file about a run."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from cluster.backend import Backend, NodeError
from ostrain.cli.common import opened_run
from ostrain.errors import OstrainError
from ostrain.states import ExitCode
from ostrain.status import refresh
from ostrain.store import Run
from ostrain.talk import say

_MODULES = ("mindspore", "numpy", "safetensors")


@click.command()
@click.argument("run", default="last")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="The file [default: RUN.html].")
def report(run: str, output: Path | None) -> int:
    """Write one self-contained HTML file about RUN (default: the newest), at work or ended.

    Curves over all attempts, step times of the ranks, stragglers, checkpoints, faults and recoveries, nodes and
    versions, the files that were started. It asks the nodes, so a run that was removed has no report any more.
    """
    from ostrain.page.build import write_page
    from ostrain.page.history import read_history
    from ostrain.top.events import supervisor_lines

    with opened_run(run) as (store, found, backend):
        say(f"reading the files of {found.run_id} on {len(found.plan.nodes)} nodes")
        history = read_history(backend, found)
        if history.missing and not history.statuses:
            raise OstrainError(
                f"no node of {found.run_id} answers",
                why="; ".join(f"{node}: {why}" for node, why in sorted(history.missing.items())[:5]),
                next_step=f"ostrain status {found.run_id}",
                exit_code=ExitCode.UNREACHABLE,
            )
        told = refresh(store, found, backend)
        path = output or Path(f"{found.run_id}.html")
        lines = supervisor_lines(found.run_id)
        write_page(history, told, lines, _versions(backend, found), path, time.time())
    click.echo(path)
    for node, why in history.missing.items():
        say(f"without node {node}: {why}")
    return int(ExitCode.OK)


def _versions(backend: Backend, run: Run) -> dict[str, dict[str, Any]]:
    """What the nodes that answer say of themselves; a look, no check."""
    plan = replace(run.plan, checks={"modules": list(_MODULES), "device": "CPU"}, master_port=0)
    answers = backend.probe(plan, timeout=20.0)
    return {name: answer for name, answer in answers.items() if not isinstance(answer, NodeError)}

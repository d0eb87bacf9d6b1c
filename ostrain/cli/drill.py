"""``ostrain drill``: what happens to this job when something breaks, found out on purpose."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from ostrain.cli.common import json_option, opened_store
from ostrain.errors import OstrainError
from ostrain.paths import state_dir
from ostrain.states import ExitCode
from ostrain.store import Store
from ostrain.talk import emit_json, say

if TYPE_CHECKING:
    from ostrain.drill.case import Ground
    from ostrain.drill.settings import Rehearsed


@click.command()
@click.argument("job", type=click.Path(path_type=Path), required=False)
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a key of the job; may be repeated.")
@click.option("--fault", "names", multiple=True, help="Only this fault; may be repeated. [default: all]")
@click.option("--seeds", type=click.IntRange(1, 1000), default=1, show_default=True, help="Cases a fault.")
@click.option("--steps", type=click.IntRange(4), default=24, show_default=True, help="Steps of each run.")
@click.option("--every", type=click.IntRange(1), default=4, show_default=True, help="Steps between checkpoints.")
@click.option("--keep", is_flag=True, help="Keep the runs, with their logs and checkpoints.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before breaking things on a cluster.")
@click.option("--list", "listed", is_flag=True, help="Show the faults and end.")
@json_option
def drill(
    job: Path | None,
    overrides: tuple[str, ...],
    names: tuple[str, ...],
    seeds: int,
    steps: int,
    every: int,
    keep: bool,
    yes: bool,
    listed: bool,
    as_json: bool,
) -> int:
    """Rehearse faults on JOB: start it, break something at a random moment, see whether it recovers as it should.

    Every case is a short run of its own, compared with one that nobody disturbs. Nothing else is touched: only
    processes of these runs are killed, and whatever is broken on a node mends itself, even if this command is killed.

    Exits with 1 when any case is not as it should be.
    """
    from ostrain.drill.faults import FAULTS
    from ostrain.drill.settings import chosen_faults, rehearse_job
    from ostrain.drill.text import line, summary

    if listed:
        for one in FAULTS.values():
            click.echo(f"{one.name:<20} {one.title}")
        return int(ExitCode.OK)
    if job is None:
        raise OstrainError("no job is named", next_step="ostrain drill JOB", exit_code=ExitCode.USAGE)
    faults = chosen_faults(names)
    with opened_store() as store:
        _refuse_run(store, job)
        rehearsed = rehearse_job(job, overrides, steps=steps, every=every)
        _confirm(rehearsed, len(faults) * seeds, yes)
        from ostrain.drill.rehearsal import Rehearsal

        ground = _ground(store, rehearsed, keep)
        rehearsal = Rehearsal(ground, faults, range(1, seeds + 1), tell=lambda verdict: say("  " + line(verdict)))
        try:
            with interrupted_by_signals():
                rehearsal.run()
        finally:
            if as_json:
                emit_json([verdict.as_dict() for verdict in rehearsal.done])
            elif rehearsal.done:
                click.echo(summary(rehearsal.done))
            say(f"what the runs said: {ground.folder}")
    good = all(verdict.good for verdict in rehearsal.done)
    return int(ExitCode.OK if good else ExitCode.RUN_FAILED)


def _refuse_run(store: Store, job: Path) -> None:
    if not job.exists() and any(run.run_id == str(job) for run in store.all()):
        raise OstrainError(
            f"{job} is a run; a drill breaks nothing but runs of its own",
            next_step="name the job file it was submitted from",
            exit_code=ExitCode.USAGE,
        )


def _confirm(rehearsed: Rehearsed, cases: int, yes: bool) -> None:
    """Nobody's cluster is disturbed by accident."""
    if yes or rehearsed.backend == "local":
        return
    what = f"{cases + 1} runs of {rehearsed.steps} steps on {rehearsed.nodes} nodes of {rehearsed.cluster}"
    if not sys.stdin.isatty():
        raise OstrainError(
            f"a drill breaks things on purpose: {what}; nobody is here to confirm",
            next_step=f"ostrain drill --yes {rehearsed.job}",
            exit_code=ExitCode.USAGE,
        )
    click.confirm(f"{what}, each with something broken on purpose; go on?", abort=True, err=True)


def _ground(store: Store, rehearsed: Rehearsed, keep: bool) -> Ground:
    from cluster.backends import open_backend
    from cluster.injector import NodeInjector
    from cluster.node_backend import NodeBackend
    from ostrain.drill.case import Ground

    def injector(backend: object) -> NodeInjector:
        assert isinstance(backend, NodeBackend), "settings let through backends of nodes only"
        return NodeInjector(backend)

    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = state_dir() / "drills" / f"{stamp}-{rehearsed.name}"
    return Ground(store, rehearsed, open_backend, injector, folder, say, keep=keep)


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end a drill as Ctrl-C does: after mending what is broken."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""``ostrain supervise``: watch a run, and start it again when it fails."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from cluster.backend import Backend
from ostrain.cli.common import json_option, opened_run, opened_store, resolved_secrets
from ostrain.states import ExitCode
from ostrain.store import Run, Store
from ostrain.supervisor.journal import Entry, read_journal
from ostrain.talk import emit_json, next_commands, say, table

FOREGROUND_PATIENCE = 5.0  # seconds after the end in which fenced nodes are waited for before the command returns


@click.command()
@click.argument("run")
@click.option("--detach", is_flag=True, help="In the background; returns at once.")
@click.option("--background", is_flag=True, hidden=True, help="This is the process that --detach starts.")
@click.option("--journal", is_flag=True, help="Show what its supervisors saw and did so far, and return.")
@json_option
def supervise(run: str, detach: bool, background: bool, journal: bool, as_json: bool) -> int:
    """Watch RUN and start it again when it fails, as its job's `restart` section says.

    `submit` and `resume` start a supervisor by themselves; this command adopts a run whose supervisor died.
    Exits with the class of the run's end.
    """
    if journal:
        return show_journal(run, as_json)
    with opened_run(run) as (store, found, backend):
        if detach:
            return detached(store, found)
        return in_the_foreground(store, backend, found, None, background=background)


def show_journal(word: str, as_json: bool) -> int:
    """Print a run's supervisor.jsonl."""
    import dataclasses

    with opened_store() as store:
        entries = read_journal(store.find(word).run_id)
    if as_json:
        emit_json([dataclasses.asdict(entry) for entry in entries])
    elif entries:
        click.echo(table([_row(entry) for entry in entries], ("TIME", "ATTEMPT", "EVENT", "NODE", "RANK", "DETAIL")))
    else:
        say("nobody has supervised this run")
    return int(ExitCode.OK)


def _row(entry: Entry) -> list[object]:
    import time

    moment = time.strftime("%H:%M:%S", time.localtime(entry.time)) + f".{int(entry.time * 10) % 10}"
    rank = "-" if entry.rank is None else entry.rank
    named = entry.reason if not entry.detail.startswith(entry.reason) else ""
    words = ": ".join(word for word in (named, entry.detail) if word)
    shown = words if len(words) <= 110 else words[:107] + "..."
    return [moment, entry.attempt, entry.event, entry.node or "-", rank, shown]


def detached(store: Store, run: Run) -> int:
    """Start a supervisor in the background and say so."""
    from ostrain.supervisor.detach import log_path, start_detached

    pid = start_detached(store, run.run_id)
    say(f"process {pid} supervises {run.run_id}: up to {run.plan.restart.get('max')} restarts in a row")
    commands = [
        (f"ostrain status {run.run_id}", "state, step, workers"),
        (f"ostrain supervise {run.run_id} --journal", "what it saw and did"),
        (f"tail -f {shlex.quote(str(log_path(run.run_id)))}", "what it says"),
    ]
    say(next_commands(commands))
    return int(ExitCode.OK)


def _leave_fences(store: Store, run: Run) -> None:
    """Nodes that were given up and still do not answer: somebody in the background waits for them."""
    from ostrain.supervisor.detach import start_detached
    from ostrain.supervisor.memory import Memory

    waiting = Memory.of(store.get(run.run_id).supervision).open_fences
    if waiting:
        pid = start_detached(store, run.run_id)
        say(f"process {pid} waits for {', '.join(waiting)}, to end what may still run there")


def in_the_foreground(
    store: Store, backend: Backend, run: Run, report: Path | None, *, as_json: bool = False, background: bool = False
) -> int:
    """Supervise and show a run to its end. Interrupted, a supervisor in the background takes over.

    background: this process is that one; it takes its time for nodes that were given up.
    """
    import sys

    from ostrain.cli.submit import close_watch
    from ostrain.progress import progress_for
    from ostrain.supervisor.loop import FENCE_PATIENCE
    from ostrain.supervisor.loop import supervise as supervise_run
    from ostrain.watch import News, Step

    records: list[dict[str, object]] = []
    try:
        with progress_for(run.plan.steps, terminal=sys.stderr.isatty()) as progress:

            def tell(news: News) -> None:
                progress.show(news)
                if isinstance(news, Step):
                    records.append(news.record)

            secrets = resolved_secrets(run.plan)
            patience = FENCE_PATIENCE if background else FOREGROUND_PATIENCE
            told = supervise_run(store, backend, run, secrets=secrets, tell=tell, patience=patience)
    except KeyboardInterrupt:
        say("\nstopped watching; the run goes on")
        if not store.get(run.run_id).settled:
            detached(store, store.get(run.run_id))
        return int(ExitCode.INTERRUPTED)
    if not background:
        _leave_fences(store, run)
    return close_watch(store.get(run.run_id), told, records, report, as_json=as_json)

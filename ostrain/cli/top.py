"""``ostrain top``: nodes and ranks of a run, live."""

from __future__ import annotations

import sys
import time

import click

from ostrain.cli.common import json_option, opened_backend, opened_store
from ostrain.errors import OstrainError
from ostrain.states import ExitCode
from ostrain.status import refresh
from ostrain.store import Run, Store
from ostrain.talk import emit_json, say


@click.command()
@click.argument("run", default="last")
@click.option("--once", is_flag=True, help="Print one picture and end.")
@json_option
def top(run: str, once: bool, as_json: bool) -> int:
    """Show nodes and ranks of RUN (default: the newest) live: steps, pace, waiting, memory, loss, what happened last.

    q leaves. The run is only looked at. Ends with the run; exits with the class of its state as `status` does.
    """
    if not (once or as_json or sys.stdout.isatty()):
        raise OstrainError(
            "top draws on a terminal, and standard output is none",
            next_step="ostrain top --once prints one picture, --json one snapshot",
            exit_code=ExitCode.USAGE,
        )
    with opened_store() as store:
        found = store.find(run)
        if once or as_json:
            return _once(store, found, as_json)
        return _live(store, found)


def _once(store: Store, run: Run, as_json: bool) -> int:
    from ostrain.top.board import Board
    from ostrain.top.events import supervisor_lines
    from ostrain.top.source import gathered
    from ostrain.top.temperature import temperatures

    board = Board(run)
    with opened_backend(run.plan) as backend:
        for item in gathered(backend, run):
            board.take(item, time.time())
        for name, degrees in temperatures(backend, run.plan).items():
            board.nodes[name].temperatures = degrees
        told = refresh(store, run, backend)
    lines = [*board.events, *supervisor_lines(run.run_id)]
    if as_json:
        from ostrain.top.snapshot import snapshot

        emit_json(snapshot(board, time.time(), lines))
        return told.exit_code
    from rich.console import Console

    from ostrain.top.frame import Size, frame
    from ostrain.top.live import unicode_ok

    console = Console(highlight=False)
    width = console.size.width if console.is_terminal else 100
    console = Console(highlight=False, width=width)
    console.print(frame(board, Size(width), time.time(), lines, plain=not unicode_ok(console.encoding)))
    return told.exit_code


def _live(store: Store, run: Run) -> int:
    from rich.console import Console

    from ostrain.top.live import Live

    view = Live(run, Console(highlight=False))
    try:
        ended = view.show()
    except KeyboardInterrupt:
        say(f"stopped watching; the run goes on: ostrain top {run.run_id}")
        return int(ExitCode.INTERRUPTED)
    if not ended:
        return int(ExitCode.OK)
    with opened_backend(view.board.plan) as backend:
        told = refresh(store, store.get(run.run_id), backend)
    say(f"{run.run_id} {told.state.value}: {told.reason}")
    return told.exit_code

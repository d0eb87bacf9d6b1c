"""``ostrain why``: the first fault of a run, what followed it, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cluster.backend import Backend
from ostrain.cli.common import json_option, opened_backend, opened_store
from ostrain.errors import OstrainError
from ostrain.states import ExitCode
from ostrain.status import RunStatus, refresh
from ostrain.store import Run, Store
from ostrain.talk import emit_json, next_commands, say

if TYPE_CHECKING:
    from ostrain.why.analysis import Analysis


@click.command()
@click.argument("run", default="last")
@click.option("--attempt", type=click.IntRange(1), help="Of this attempt [default: the newest].")
@click.option("-n", "--lines", "shown", type=click.IntRange(1), default=30, show_default=True, help="Moments shown.")
@click.option("--wide", is_flag=True, help="Whole lines, however long.")
@click.option("--code", "word", metavar="CODE", help="Only explain a code: EI0006, 507015, SIGKILL …")
@json_option
def why(run: str, attempt: int | None, shown: int, wide: bool, word: str | None, as_json: bool) -> int:
    """Put everything the nodes of RUN (default: the newest) know on one axis of time, name the earliest fault and the
    rank it happened on, and explain it where it is known.

    Clocks are measured, logs of all ranks, the scheduler and the launcher, agents' and supervisor's events, the
    driver's logs (plog) and the kernel's lines are read. Exits with 0 when it could look, whatever it found.
    """
    if word is not None:
        return _explain(word, as_json)
    from ostrain.why.analysis import analyse

    with opened_store() as store:
        found = store.find(run)
        if attempt is not None and attempt > found.attempt:
            raise OstrainError(
                f"run {found.run_id} has no attempt {attempt}; its newest is {found.attempt}", exit_code=ExitCode.USAGE
            )
        with opened_backend(found.plan) as backend:
            status = _status(store, found, backend)
            analysis = analyse(backend, found, status, attempt or found.attempt)
    if as_json:
        emit_json({"run_id": found.run_id, **analysis.as_dict()})
    else:
        click.echo(analysis.text(shown=shown, wide=wide))
        say("\n" + next_commands(_next(found, status, analysis)))
    return int(ExitCode.UNREACHABLE if analysis.blind else ExitCode.OK)


def _status(store: Store, run: Run, backend: Backend) -> RunStatus:
    return RunStatus.from_run(run) if run.settled else refresh(store, run, backend)


def _explain(word: str, as_json: bool) -> int:
    from ostrain.why.codes import explain
    from ostrain.why.text import explanation

    code = explain(word)
    if code is None:
        raise OstrainError(
            f"{word!r} is no code known here",
            why="known are CANN's codes (E, a letter, four digits), the runtime's (six digits) and signals",
            exit_code=ExitCode.USAGE,
        )
    if as_json:
        emit_json(code.as_dict())
    else:
        click.echo("\n".join([code.code, *explanation(code)]))
    return int(ExitCode.OK)


def _next(run: Run, status: RunStatus, analysis: Analysis) -> list[tuple[str, str]]:
    commands = [(f"ostrain logs {run.run_id} --rank R", "all that a rank said")]
    before = analysis.evidence.attempt - 1
    if before and analysis.verdict.first is None:
        commands.insert(0, (f"ostrain why {run.run_id} --attempt {before}", "the fault of the attempt before"))
    if not status.state.final:
        return [(f"ostrain stuck {run.run_id}", "what every rank is at now"), *commands]
    return [*commands, (f"ostrain bundle {run.run_id}", "all of it in one file, for whoever helps")]

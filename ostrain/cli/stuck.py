"""``ostrain stuck``: what every rank is at this moment, and the odd one among them."""

from __future__ import annotations

import click

from cluster.backend import RunRef
from ostrain.cli.common import json_option, opened_run
from ostrain.errors import OstrainError
from ostrain.states import ExitCode
from ostrain.stuck import RankState, StuckReport, look
from ostrain.talk import emit_json, next_commands, say, table

SHOWN = 64


@click.command()
@click.argument("run", default="last")
@click.option("--stacks", is_flag=True, help="Every rank's whole stacks, too.")
@click.option(
    "--timeout", type=click.FloatRange(0.5, 120.0), default=8.0, show_default=True, help="Seconds a node has."
)
@json_option
def stuck(run: str, stacks: bool, timeout: float, as_json: bool) -> int:
    """Ask every worker of RUN (default: the newest) where it is, all at once, and name the odd one.

    It disturbs nobody: workers write their stacks and go on. Exits with 0 when it could look, whatever it saw, and
    with 4 when no node answered.
    """
    with opened_run(run) as (_, found, backend):
        if found.settled:
            raise OstrainError(
                f"run {found.run_id} has ended ({found.state.value}, {found.reason}); no worker of it runs",
                next_step=f"ostrain why {found.run_id}",
                exit_code=ExitCode.USAGE,
            )
        report = look(backend, RunRef(found.run_id, found.plan), timeout)
    if as_json:
        emit_json({"run_id": found.run_id, **report.as_dict()})
    else:
        _show(found.run_id, report, stacks)
    return int(ExitCode.UNREACHABLE if len(report.unreachable) == len(found.plan.nodes) else ExitCode.OK)


def _show(run_id: str, report: StuckReport, stacks: bool) -> None:
    click.echo(report.text)
    click.echo()
    click.echo(rank_table(report))
    if stacks:
        for one in report.ranks:
            if one.text:
                click.echo(f"\n--- rank {one.rank} on node {one.node}\n{one.text.rstrip()}")
    commands = [(f"ostrain logs {run_id} --rank R", "what a rank said last"), (f"ostrain why {run_id}", "the timeline")]
    say("\n" + next_commands(commands))


def rank_table(report: StuckReport) -> str:
    """A table of ranks; of very many, the suspect's neighbourhood and one line for the rest."""
    ranks = list(report.ranks)
    if len(ranks) > SHOWN:
        suspect = report.suspect.rank if report.suspect and report.suspect.rank is not None else 0
        first = max(0, min(suspect - SHOWN // 2, len(ranks) - SHOWN))
        ranks = ranks[first : first + SHOWN]
    body = table([_row(one) for one in ranks], ("RANK", "NODE", "STEP", "PHASE", "BEAT", "STATE", "AT"))
    left = len(report.ranks) - len(ranks)
    return body + (f"\n… and {left} more ranks; --json has them all" if left else "")


def _row(one: RankState) -> list[object]:
    beat = "-" if one.age is None else f"{one.age:.1f}s"
    state = one.state or one.worker
    at = one.frame or (f"kernel: {one.wchan}" if one.wchan else "-")
    return [one.rank, one.node, "-" if one.step is None else one.step, one.phase or "-", beat, state, at]

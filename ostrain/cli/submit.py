"""``ostrain submit``: from a job file to a running run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

from cluster.backend import Backend
from ostrain.cli.common import json_option, opened_backend, opened_store, resolved_secrets
from ostrain.cli.status import fault_message, fault_title
from ostrain.errors import OstrainError, SpecError
from ostrain.lifecycle import raise_failures
from ostrain.lifecycle import submit as submit_run
from ostrain.paths import state_dir
from ostrain.plan import LaunchPlan
from ostrain.states import ExitCode
from ostrain.status import RunStatus
from ostrain.store import Run, Store
from ostrain.talk import emit_json, next_commands, say, table


@click.command()
@click.argument("job", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a key of the job; may be repeated.")
@click.option("-f", "--follow", is_flag=True, help="Watch it to its end; exit with its class.")
@click.option("--dry-run", is_flag=True, help="Compile and check the nodes; start nothing.")
@click.option("--report", type=click.Path(path_type=Path), help="With --follow: folder for the loss curve.")
@click.option("--no-check", is_flag=True, help="Do not look at the nodes first, as `ostrain check` does.")
@json_option
def submit(
    job: Path,
    overrides: tuple[str, ...],
    follow: bool,
    dry_run: bool,
    report: Path | None,
    no_check: bool,
    as_json: bool,
) -> int:
    """Check the nodes, then start a run of JOB: a file, or the name of a bundled job such as `quickstart`.

    Without --follow it returns as soon as every node's agent has started its launcher.
    """
    plan = compiled(job, overrides)
    secrets = resolved_secrets(plan)
    with opened_backend(plan) as backend:
        check_first(job, overrides, plan, backend, no_check)
        if dry_run:
            raise_failures("the check", backend.probe(plan.everywhere()))
            say(f"{plan.name}: {plan.world} workers on {len(plan.nodes)} nodes would start; every check passed")
            return int(ExitCode.OK)
        from cluster.bundle import build_bundle

        with opened_store() as store:
            run = submit_run(store, backend, plan, job_path=str(job), bundle=build_bundle(), secrets=secrets, say=say)
            if as_json:
                emit_json({"run_id": run.run_id, "attempt": run.attempt, "nodes": [node.name for node in plan.nodes]})
            else:
                click.echo(run.run_id)
            if follow:
                return follow_run(store, backend, run, report, as_json=as_json)
            if plan.restart:
                return after_start(store, run)
    say(next_commands(after_submit(run.run_id)))
    return int(ExitCode.OK)


def check_first(job: Path, overrides: tuple[str, ...], plan: LaunchPlan, backend: Backend, no_check: bool) -> None:
    """The preflight (docs/preflight.md), unless nobody wants it."""
    if no_check:
        say("warning: the nodes are not checked (--no-check); what they lack shows when the workers start")
        return
    from ostrain.cli.check import before_submit

    before_submit(job, overrides, plan, backend)


def compiled(job: Path, overrides: tuple[str, ...]) -> LaunchPlan:
    """The plan of a job that can run here and now: sources exist, the payload can do what is asked."""
    from ostrain.compiler import compile_plan
    from ostrain.spec import check_runnable, load_job

    loaded = load_job(job, overrides)
    problems = check_runnable(loaded)
    if problems:
        raise SpecError(problems)
    plan = compile_plan(loaded)
    if loaded.job.restart.max == 0 or "attempts" in plan.service:  # the latter wait in Slurm's queue
        return plan
    from ostrain.supervisor.resolved import attach, disk_warning

    if warning := disk_warning(loaded):
        say(f"warning: {warning}")
    return attach(plan, loaded)


def follow_run(store: Store, backend: Backend, run: Run, report: Path | None, *, as_json: bool = False) -> int:
    """Show a run to its end; supervise it meanwhile where its job wants that."""
    if not run.plan.restart:
        return watch_to_the_end(store, backend, run, report, tell=say if as_json else click.echo)
    from ostrain.cli.supervise import in_the_foreground

    return in_the_foreground(store, backend, run, report, as_json=as_json)


def after_start(store: Store, run: Run) -> int:
    """A supervisor in the background for a run that nobody follows."""
    from ostrain.cli.supervise import detached

    return detached(store, run)


def after_submit(run_id: str) -> list[tuple[str, str]]:
    return [
        (f"ostrain status {run_id}", "state, step, workers"),
        (f"ostrain logs -f {run_id}", "the logs of all nodes"),
        (f"ostrain cancel {run_id}", "end it"),
    ]


def watch_to_the_end(
    store: Store, backend: Backend, run: Run, report: Path | None, tell: Callable[[str], None] = click.echo
) -> int:
    """Show a run until it has ended; then its table, its loss curve and what to do next. Returns its exit code.

    tell: where the table goes; not to standard output where that is for other data.
    """
    from ostrain.progress import progress_for
    from ostrain.watch import Step, settle, watch

    records: list[dict[str, object]] = []
    try:
        with progress_for(run.plan.steps, terminal=sys.stderr.isatty()) as progress:
            for news in watch(store, backend, run):
                progress.show(news)
                if isinstance(news, Step):
                    records.append(news.record)
        told = settle(store, backend, run)
    except KeyboardInterrupt:
        say(f"\nstopped watching; the run goes on\n{next_commands(after_submit(run.run_id))}")
        return int(ExitCode.INTERRUPTED)
    return close_watch(run, told, records, report, as_json=tell is say)


def close_watch(
    run: Run, told: RunStatus, records: list[dict[str, object]], report: Path | None, *, as_json: bool = False
) -> int:
    """The last words on a run that was watched to its end; its exit code."""
    _close(run, told, records, report or state_dir() / "reports" / run.run_id, say if as_json else click.echo)
    if not told.state.final:
        say("the nodes stopped answering before the run's end was seen")
        return int(ExitCode.UNREACHABLE)
    return told.exit_code


def _close(
    run: Run, told: RunStatus, records: list[dict[str, object]], folder: Path, tell: Callable[[str], None]
) -> None:
    """The last words on a run that was watched."""
    from ostrain.report import by_step, draw_loss, summary

    say(f"\n{run.run_id} {told.state.value}: {told.reason}")
    if told.fault:
        say(f"  {fault_title(told.fault)}")
        for line in fault_message(told.fault):
            say(f"  {line}")
    rows = by_step(records)
    if rows:
        tell(table(summary(rows), ("", "")))
    if any(row.get("loss") is not None for row in rows):
        try:
            draw_loss(rows, run.run_id, folder / "loss.png")
            say(f"loss curve: {folder / 'loss.png'}")
        except OstrainError as error:
            say(str(error))
    say("next:\n" + next_commands(_after_end(run, told)))


def _after_end(run: Run, told: RunStatus) -> list[tuple[str, str]]:
    commands = [
        (f"ostrain status {run.run_id}", "the whole status"),
        (f"ostrain logs {run.run_id}", "the logs of all nodes"),
    ]
    if told.exit_code == 0:
        return [*commands, (f"ostrain rm {run.run_id}", "delete its files")]
    return [*commands, (f"ostrain resume {run.run_id}", "go on from the newest checkpoint")]

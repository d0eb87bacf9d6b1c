"""``ostrain check``: are the nodes fit for a job?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cluster.backend import Backend
from ostrain.cli.common import json_option, opened_backend, opened_store, resolved_secrets
from ostrain.errors import OstrainError
from ostrain.plan import LaunchPlan
from ostrain.states import ExitCode
from ostrain.talk import emit_json, say

if TYPE_CHECKING:
    from ostrain.preflight.look import Preflight
    from ostrain.preflight.verdict import Verdict
    from ostrain.spec.load import LoadedJob


@click.command()
@click.argument("job", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a key of the job; may be repeated.")
@click.option("--fresh", is_flag=True, help="Ask for everything; remember nothing from earlier checks.")
@click.option(
    "--canary/--no-canary", default=None,
    help="One collective over all ranks at the end; default: where nodes are several and all passed.",
)  # fmt: skip
@click.option("--every", is_flag=True, help="A line for every node, also where all is well.")
@json_option
def check(job: Path, overrides: tuple[str, ...], fresh: bool, canary: bool | None, every: bool, as_json: bool) -> int:
    """Look at every node that JOB would run on, all at once: a line a check, with what to do where one fails.

    Ends with 3 where a check failed, with 4 where a node cannot be reached.
    """
    from ostrain.preflight.show import lines, summary

    loaded, plan = loaded_plan(job, overrides)
    with opened_backend(plan) as backend:
        found = preflight(loaded, plan, backend, fresh=fresh)
        if not as_json:
            click.echo("\n".join(lines(found.verdicts, every=every)))
        verdicts = list(found.verdicts)
        wanted = len(plan.nodes) > 1 if canary is None else canary
        if wanted and found.exit_code == 0:
            sung = sing(loaded, plan, backend)
            verdicts += sung
            if not as_json:
                click.echo("\n".join(lines(sung, every=True)))
    from ostrain.preflight.evaluate import exit_code

    code = exit_code(verdicts)
    if as_json:
        emit_json({"job": plan.name, "exit_code": code, "checks": [verdict.as_dict() for verdict in verdicts]})
    if found.age:
        say(f"versions, disk speed and files as seen up to {found.age:.0f} s ago; --fresh asks again")
    say(summary(verdicts, len(plan.nodes)))
    return code


def loaded_plan(job: Path, overrides: tuple[str, ...]) -> tuple[LoadedJob, LaunchPlan]:
    """A job that can run here and now, and its plan."""
    from ostrain.cli.submit import compiled
    from ostrain.spec import load_job

    plan = compiled(job, overrides)
    return load_job(job, overrides), plan


def preflight(loaded: LoadedJob, plan: LaunchPlan, backend: Backend, *, fresh: bool = False) -> Preflight:
    """Look at the nodes. OstrainError where the backend learns only at the start which nodes there are."""
    from cluster.inspection import Inspects
    from ostrain.preflight.look import look

    if not isinstance(backend, Inspects) or "attempts" in plan.service:
        raise OstrainError(
            f"the nodes of {plan.backend} are known only when a job starts",
            next_step="submit the job; what its nodes lack is told then",
            exit_code=ExitCode.USAGE,
        )
    return look(loaded, plan, backend, fresh=fresh)


def sing(loaded: LoadedJob, plan: LaunchPlan, backend: Backend) -> list[Verdict]:
    """The canary's verdicts."""
    from cluster.bundle import build_bundle
    from ostrain.preflight.canary import canary

    secrets = resolved_secrets(plan)
    timeout = loaded.job.check.canary_timeout
    with opened_store() as store:
        return canary(store, backend, plan, bundle=build_bundle(), secrets=secrets, timeout=timeout, say=say)


def before_submit(job: Path, overrides: tuple[str, ...], plan: LaunchPlan, backend: Backend) -> None:
    """The preflight of a submit: says warnings, raises where a line fails. A service's nodes are not known yet."""
    from cluster.inspection import Inspects
    from ostrain.preflight.show import PreflightFailed, told
    from ostrain.preflight.verdict import Level
    from ostrain.spec import load_job

    if not isinstance(backend, Inspects) or "attempts" in plan.service:
        return
    loaded = load_job(job, overrides)
    found = preflight(loaded, plan, backend)
    verdicts = list(found.verdicts)
    for verdict in found.of(Level.WARN):
        say("\n".join(told(verdict)))
    code = found.exit_code
    if not code and loaded.job.check.canary:
        from ostrain.preflight.evaluate import exit_code

        verdicts += sing(loaded, plan, backend)
        code = exit_code(verdicts)
    if code:
        raise PreflightFailed(verdicts, len(plan.nodes), code, str(job))

"""``ostrain bundle``: one file for a support ticket."""

from __future__ import annotations

import time
from pathlib import Path

import click

from ostrain.cli.common import json_option, opened_run
from ostrain.errors import OstrainError
from ostrain.plan import LaunchPlan
from ostrain.states import ExitCode
from ostrain.status import RunStatus, refresh
from ostrain.store import Run
from ostrain.support.pack import Packed
from ostrain.talk import emit_json, say


@click.command()
@click.argument("run", default="last")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="File to write [RUN-support.tar.gz]."
)
@json_option
def bundle(run: str, output: Path | None, as_json: bool) -> int:
    """Pack everything about RUN (default: the newest) that helps to understand a fault into one .tar.gz: what
    `ostrain why` finds, status, plan, rendered files, events, ends of all logs, stacks, metrics, the driver's logs,
    versions. No checkpoint, no sample, no pushed file.

    Values of the job's secrets, and whatever looks like a credential, are masked. Look through it before you send it.
    """
    from ostrain.support.contents import MORE, contents, stacks_now, versions_of
    from ostrain.support.masking import Masking
    from ostrain.support.pack import pack
    from ostrain.why.analysis import analyse

    with opened_run(run) as (store, found, backend):
        target = output or Path(f"{found.run_id}-support.tar.gz")
        if target.exists():  # known before minutes are spent on it
            raise OstrainError(f"{target} exists", next_step="name another file with -o", exit_code=ExitCode.USAGE)
        secrets, unknown = known_secrets(found.plan)
        say(f"asking {len(found.plan.nodes)} node{'s' if len(found.plan.nodes) > 1 else ''}")
        stuck = stacks_now(backend, found)
        status = RunStatus.from_run(found) if found.settled else refresh(store, found, backend)
        analysis = analyse(backend, found, status, found.attempt, more=MORE)
        versions = versions_of(backend, found)
    facts = {
        "run_id": found.run_id, "attempt": found.attempt, "made": time.time(),
        "unreachable": analysis.evidence.unreachable, "secrets_not_known_here": unknown,
    }  # fmt: skip
    masking = Masking(secrets, frozenset(found.plan.secrets.values()))
    packed = pack(target, f"{found.run_id}-support", contents(found, analysis, stuck, versions), masking, facts)
    _tell(found, packed, unknown, analysis.evidence.unreachable, as_json)
    return int(ExitCode.UNREACHABLE if analysis.blind else ExitCode.OK)


def known_secrets(plan: LaunchPlan) -> tuple[dict[str, str], list[str]]:
    """Values of the job's secrets that can be looked up now, and names of those that cannot."""
    from cluster.secrets import read_secret

    values, unknown = {}, []
    for variable, name in plan.secrets.items():
        try:
            values[variable] = read_secret(name)
        except OstrainError:
            unknown.append(name)
    return values, unknown


def _tell(run: Run, packed: Packed, unknown: list[str], unreachable: dict[str, str], as_json: bool) -> None:
    if as_json:
        emit_json(
            {"run_id": run.run_id, "path": str(packed.path), "files": packed.files, "bytes": packed.size,
             "masked": packed.masked, "secrets_not_known_here": unknown, "unreachable": unreachable}
        )  # fmt: skip
        return
    click.echo(packed.path)
    say(f"{packed.files} files, {packed.size / 1e6:.1f} MB; masked: {sum(packed.masked.values())} places")
    for node, why in unreachable.items():
        say(f"node {node} does not answer, nothing of it is in there: {why}")
    if unknown:
        say(f"not known here, so not looked for by value: {', '.join(unknown)}")
    say("look through it before you send it: tar -tzf, manifest.json lists what was masked")

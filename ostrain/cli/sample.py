"""``ostrain sample``: images and videos from prompts, on this machine."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from ostrain.cli.common import opened_store
from ostrain.errors import OstrainError
from ostrain.states import ExitCode
from ostrain.talk import say


@click.command()
@click.argument("config", required=False)
@click.option("-p", "--prompt", "prompts", multiple=True, metavar="TEXT", help="What to show; may be repeated.")
@click.option("-w", "--weights", metavar="PATH", help="Weights: a file, a checkpoint, a run.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a key; may be repeated.")
@click.option("-o", "--out", metavar="DIR", help="Folder for the results [default: output.dir, samples].")
@click.option("--workers", type=click.IntRange(1, 1024), default=1, show_default=True, help="Processes that share it.")
@click.option("--run-dir", type=click.Path(path_type=Path), metavar="DIR", help="Logs and records [default: OUT/run].")
@click.option("--overwrite", is_flag=True, help="Replace results that are there already.")
@click.option("--dry-run", is_flag=True, help="Check the configuration; sample nothing.")
@click.option("--json", "as_json", is_flag=True, help="A JSON line for every result on standard output.")
def sample(
    config: str | None,
    prompts: tuple[str, ...],
    weights: str | None,
    overrides: tuple[str, ...],
    out: str | None,
    workers: int,
    run_dir: Path | None,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Sample images and videos on this machine.

    CONFIG is a YAML file, a recipe such as `opensora_v1_2/sample_t2v`, or a job with `sample:`; it may be left out
    where --weights names a run, or its directory, which knows its model. Relative paths start in the working directory.
    With several workers prompts are spread over them, or with layout.sp one video.

    An interrupted command, given again, makes what is missing.
    """
    from ostrain.sample_config import load_sample, override

    texts = [*overrides]
    texts += [override("prompts", list(prompts)), "prompt_path=''"] if prompts else []
    texts += [override("weights", _place(weights))] if weights is not None else []
    texts += [override("output.dir", out)] if out is not None else []
    texts += ["output.existing=overwrite"] if overwrite else []
    loaded, values = load_sample(config, texts)
    root = Path.cwd() / loaded.root
    folder = root / loaded.output.dir
    if dry_run:
        say("the configuration can be sampled")
        return int(ExitCode.OK)
    return _run({**values, "root": str(root)}, run_dir.absolute() if run_dir else folder / "run", workers, as_json)


def _place(word: str) -> str:
    """The path that ``word`` is, or the run directory of a run of this machine (`last`, an id, a job's name)."""
    if "/" in word or Path(word).exists():
        return word
    with opened_store() as store:
        try:
            run = store.find(word)
        except OstrainError:
            return word  # no run either: whoever reads the weights tells
    if run.plan.backend != "local":
        raise OstrainError(
            f"the checkpoints of {run.run_id} are on its nodes", next_step=f"ostrain ckpt export {run.run_id} …",
            exit_code=int(ExitCode.USAGE),
        )  # fmt: skip
    from cluster.local_backend import local_root

    node = run.plan.nodes[0]
    return str(Path(local_root(node.access), "runs", run.run_id, node.name))


def _run(values: dict[str, Any], run_dir: Path, workers: int, as_json: bool) -> int:
    from ostrain.local_task import LocalTask, Tail
    from ostrain.progress import progress_for
    from ostrain.watch import Notice, Phase, Step

    task = LocalTask("sample", values, run_dir, workers)
    metrics, records = Tail(run_dir / "metrics" / "rank-0.jsonl"), Tail(run_dir / "samples.jsonl")
    made: list[dict[str, Any]] = []

    def tell() -> None:
        for record in records.lines():
            made.append(record)
            click.echo(json.dumps(record, ensure_ascii=False) if as_json else record["path"])

    try:
        with task, progress_for(0, terminal=sys.stderr.isatty()) as progress:
            phase = ""
            for _ in task.wait():
                if (now := _phase(run_dir)) not in ("", phase):
                    phase = now
                    progress.show(Notice("reading prompts and weights") if now == "loading" else Phase(now))
                for step in metrics.lines():
                    progress.show(Step(step))
                tell()
            for step in metrics.lines():
                progress.show(Step(step))
            tell()
            task.check()
    except KeyboardInterrupt:
        say(f"interrupted; the same command goes on with what is missing ({len(made)} results are there)")
        return int(ExitCode.INTERRUPTED)
    new = (
        f"{len(made)} new result{'s' if len(made) != 1 else ''}"
        if made
        else "nothing new: all results are there already"
    )
    say(f"{new}; records: {os.path.relpath(run_dir / 'samples.jsonl')}")
    return int(ExitCode.OK)


def _phase(run_dir: Path) -> str:
    """What the first worker is at."""
    try:
        return str(json.loads((run_dir / "heartbeat" / "rank-0").read_text()).get("phase", ""))
    except (OSError, ValueError):
        return ""  # not there yet

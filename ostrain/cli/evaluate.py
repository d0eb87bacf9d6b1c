"""``ostrain eval``: how good what was trained is, measured on this machine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from ostrain.cli.common import json_option
from ostrain.states import ExitCode
from ostrain.talk import say


@click.group()
def evaluate() -> None:
    """Measure what was trained, on this machine."""


@evaluate.command()
@click.argument("clips", required=False)
@click.option("-w", "--weights", metavar="PATH", help="Weights: a file, a checkpoint or a run directory.")
@click.option("-c", "--config", metavar="FILE", help="A YAML file with more settings, or a job with `eval_vae:`.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a key; may be repeated.")
@click.option("--frames", type=click.IntRange(1), metavar="N", help="Frames of each clip [default: 17].")
@click.option("--size", metavar="HxW", help="Resize and crop clips to this size [default: as they are].")
@click.option("--lpips", nargs=2, metavar="VGG LIN", help="Measure LPIPS with these weights of VGG16 and of LPIPS.")
@click.option("--save", is_flag=True, help="Write every clip beside its reconstruction.")
@click.option("-o", "--out", metavar="DIR", default="eval", show_default=True, help="Folder for the results.")
@click.option("--workers", type=click.IntRange(1, 1024), default=1, show_default=True, help="Processes that share it.")
@json_option
def vae(
    clips: str | None,
    weights: str | None,
    config: str | None,
    overrides: tuple[str, ...],
    frames: int | None,
    size: str | None,
    lpips: tuple[str, str] | None,
    save: bool,
    out: str,
    workers: int,
    as_json: bool,
) -> int:
    """Measure how well an autoencoder rebuilds CLIPS: PSNR, SSIM and LPIPS of each, and their means.

    CLIPS is a CSV with a column `video`, a folder, or one clip or picture. A checkpoint knows its autoencoder; files of
    weights may need --set autoencoder.spatial.… and the like. Results: DIR/results.csv and DIR/results.json.
    """
    from ostrain.eval_config import eval_values

    options = {
        "weights": weights,
        "data.num_frames": frames,
        "data.image_size": _size(size),
        "perceptual": {"vgg": lpips[0], "lin": lpips[1]} if lpips else None,
        "save": True if save else None,
    } | _clips(clips)
    values = eval_values(config, {key: value for key, value in options.items() if value is not None}, overrides)
    folder = Path(out).absolute()
    records = _run({**values, "output": "."}, folder, workers)
    if records is None:
        return int(ExitCode.INTERRUPTED)
    if as_json:
        click.echo(json.dumps(records, ensure_ascii=False))
    else:
        click.echo(_table(records))
        say(f"results: {os.path.relpath(folder / 'results.csv')}")
    return int(ExitCode.OK)


def _clips(named: str | None) -> dict[str, Any]:
    if named is None:
        return {}
    if named.lower().endswith(".csv"):
        return {"data.annotations": named, "data.videos": os.path.dirname(named) or "."}
    return {"data.videos": named}


def _size(text: str | None) -> list[int] | None:
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdigit() and int(side) > 0 for side in sides):
        raise click.BadParameter(f"{text!r} is not a size such as 256x256 (height x width)", param_hint="--size")
    return [int(side) for side in sides]


def _run(values: dict[str, Any], folder: Path, workers: int) -> dict[str, Any] | None:
    """Runs the task to its end and gives its results; None where it was interrupted."""
    from ostrain.local_task import LocalTask, Tail
    from ostrain.progress import progress_for
    from ostrain.watch import Notice

    (folder / "clips.jsonl").unlink(missing_ok=True)  # of an earlier evaluation
    records = Tail(folder / "clips.jsonl")
    task = LocalTask("eval_vae", values, folder, workers)
    done = 0
    try:
        with task, progress_for(0, terminal=False) as progress:
            progress.show(Notice("reading weights and clips"))
            for _ in task.wait():
                for record in records.lines():
                    done += 1
                    progress.show(Notice(f"{done}  {_line(record)}"))
            task.check()
    except KeyboardInterrupt:
        say(f"interrupted after {done} clips")
        return None
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


def _line(record: dict[str, Any]) -> str:
    if record["problem"]:
        return f"{record['clip']}: {record['problem']}"
    numbers = "  ".join(f"{name} {record[name]:.4f}" for name in _names([record]))
    return f"{record['clip']}  {numbers}  {record['seconds']:.1f} s"


def _names(records: list[dict[str, Any]]) -> list[str]:
    """Measures that some clip has."""
    return [name for name in ("psnr", "ssim", "lpips") if any(record.get(name) is not None for record in records)]


def _table(results: dict[str, Any]) -> str:
    from tabulate import tabulate

    clips, names = results["clips"], _names(results["clips"])
    rows = [
        [record["clip"], f"{record['frames']}x{record['height']}x{record['width']}", *(record[name] for name in names)]
        if not record["problem"]
        else [record["clip"], record["problem"]]
        for record in clips
    ]
    rows.append(["mean", "", *(results["mean"][name] for name in names)])
    return tabulate(rows, ["clip", "size", *names], floatfmt=".4f", disable_numparse=[0, 1])


# The group is found by the name of its command.
eval = evaluate

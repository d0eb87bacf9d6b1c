"""``ostrain ckpt``: look at checkpoints, check them, and make other files of them."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ostrain.cli.common import json_option, numpy_needed, payload_errors
from ostrain.errors import OstrainError
from ostrain.states import ExitCode
from ostrain.talk import emit_json, say, since, table

if TYPE_CHECKING:
    from models.checkpoint.compare import Tensors
    from models.checkpoint.read import Reader
    from models.checkpoint.view import View
    from ostrain.checkpoints import Source

step_option = click.option("--step", type=click.IntRange(min=0), help="This step [default: the newest whole one].")


@click.group()
def ckpt() -> None:
    """Look at checkpoints, check them, and make other files of them.

    PATH is a run directory, a folder of checkpoints or a folder step-N; where nodes have disks of their own, name the
    folders of all of them. RUN is a run as in all other commands; what its nodes hold is fetched as needed.
    """


@ckpt.command()
@click.argument("sources", nargs=-1, required=True, metavar="PATH...|RUN")
@json_option
def ls(sources: tuple[str, ...], as_json: bool) -> int:
    """List checkpoints: whole or what is wrong, layout, size, age. Looks at names and sizes only."""
    from ostrain.checkpoints import opened

    with payload_errors(), opened(sources) as source:
        rows = [_row(view) for view in source.views]
        if as_json:
            emit_json({"checkpoints": rows, "unreachable": [error.node for error in source.errors]})
        elif rows:
            headers = ("STEP", "STATE", "LAYOUT", "SHARDS", "SIZE", "AGE", "NODES")
            click.echo(table([_shown(row) for row in rows], headers))
            for problem in (problem for row in rows for problem in row["problems"]):
                click.echo(f"  {problem}")
        else:
            say(f"no checkpoints in {source.name} yet")
        return _unreachable(source)


def _unreachable(source: Source) -> int:
    for error in source.errors:
        say(str(error))
    return int(ExitCode.UNREACHABLE if source.errors else ExitCode.OK)


def _row(view: View) -> dict[str, Any]:
    manifest, state = view.manifest, view.state or {}
    return {
        "step": view.step,
        "name": view.name,
        "whole": view.whole,
        "aside": view.aside,
        "layout": state.get("layout"),
        "kinds": list(manifest.kinds) if manifest else [],
        "shards": len(manifest.shards) if manifest else None,
        "shards_found": len(view.shards),
        "bytes": manifest.size if manifest else None,
        "time": manifest.time if manifest else None,
        "nodes": sorted({holding.node for holding in view.holdings}),
        "problems": view.problems,
    }


def _shown(row: dict[str, Any]) -> list[object]:
    layout = row["layout"] or {}
    degrees = " ".join(f"{name}{layout[name]}" for name in ("dp", "sp", "zero") if name in layout)
    state = "set aside" if row["aside"] else "whole" if row["whole"] else "not whole"
    if row["whole"] and row["problems"]:
        state += ", a copy is not"
    shards = "-" if row["shards"] is None else f"{row['shards_found']}/{row['shards']}"
    age = "-" if row["time"] is None else since(row["time"])
    return [row["step"], state, degrees or "-", shards, _size(row["bytes"]), age, ", ".join(row["nodes"])]


def _size(number: int | None) -> str:
    """``3.4 GB`` (1 GB = 2**30 bytes, as in job files)."""
    if number is None:
        return "-"
    power = min(int(math.log(max(number, 1), 1024)), 4)
    return f"{number} B" if power == 0 else f"{number / 1024**power:.1f} {('KB', 'MB', 'GB', 'TB')[power - 1]}"


@ckpt.command()
@click.argument("sources", nargs=-1, required=True, metavar="PATH...|RUN")
@click.option("--step", type=click.IntRange(min=0), help="Only this step [default: all].")
@json_option
def verify(sources: tuple[str, ...], step: int | None, as_json: bool) -> int:
    """Read every file and compare its hash with the manifest's. Exits with 1 if anything is damaged or missing."""
    from models.checkpoint.view import verify as verify_view
    from ostrain.checkpoints import opened

    with payload_errors(), opened(sources) as source:
        views = [view for view in source.views if step is None or view.step == step]
        if not views:
            source.chosen(step)
        total = sum(_stored(view) for view in views)
        with _progress("verifying", total) as progress:
            good = [verify_view(view, progress) for view in views]
        rows = [{**_row(view), "shards_good": len(found)} for view, found in zip(views, good, strict=True)]
        for row in rows:
            row["whole"] = row["whole"] and row["shards_good"] == row["shards"]
        if as_json:
            emit_json({"checkpoints": rows, "unreachable": [error.node for error in source.errors]})
        else:
            for row in rows:
                click.echo(_verdict(row))
        unreachable = _unreachable(source)
        # What a resume has set aside is known to be bad.
        bad = any(row["problems"] or not row["whole"] for row in rows if not row["aside"])
        return int(ExitCode.RUN_FAILED) if bad else unreachable


def _stored(view: View) -> int:
    assert view.manifest is not None or not view.shards
    return sum(view.manifest.shards[n].size * len(at) for n, at in view.shards.items()) if view.manifest else 0


def _verdict(row: dict[str, Any]) -> str:
    verdict = "whole" if row["whole"] else "NOT WHOLE"
    if row["whole"] and row["problems"]:
        verdict = "whole, but not every copy is"
    lines = [f"{row['name']}: {verdict}, {row['shards_good']} of {row['shards'] or '?'} shards, {_size(row['bytes'])}"]
    return "\n".join(lines + [f"  {problem}" for problem in row["problems"]])


@ckpt.command()
@click.argument("sources", nargs=-1, required=True, metavar="PATH...|RUN")
@click.argument("out", type=click.Path(path_type=Path))
@step_option
@click.option("--ema", is_flag=True, help="The moving averages instead of the model.")
@click.option("--dtype", type=click.Choice(("fp32", "fp16", "bf16")), default="fp32", show_default=True)
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
def export(sources: tuple[str, ...], out: Path, step: int | None, ema: bool, dtype: str, force: bool) -> None:
    """Write one safetensors file with PyTorch names and whole shapes, for PyTorch, Hugging Face or init_from."""
    with numpy_needed():
        from models.checkpoint import convert

    _check_out(out, force)
    with payload_errors(), _opened_reader(sources, step) as (_, view, reader):
        size = sum(
            4 * math.prod(reader.manifest.tensors[key])
            for key in convert.export_keys(reader.manifest, ema=ema).values()
        )
        with _progress("writing", size) as progress:
            overflown = convert.export(reader, out, ema=ema, dtype=dtype, progress=progress)
    if overflown:
        say(f"warning: values beyond 65504 became infinite in {', '.join(overflown[:5])}; bf16 would keep them")
    say(f"{'averages' if ema else 'model'} of step {view.step} written to {out} ({_size(out.stat().st_size)}, {dtype})")


def _check_out(out: Path, force: bool) -> None:
    if out.is_dir():
        raise OstrainError(f"{out} is a folder", next_step="name a file for OUT", exit_code=ExitCode.USAGE)
    if out.suffix != ".safetensors":
        raise OstrainError(
            f"OUT does not end in .safetensors: {out}", next_step=f"name it {out}.safetensors", exit_code=ExitCode.USAGE
        )
    if out.exists() and not force:
        raise OstrainError(
            f"{out} exists", next_step="name another file, or add --force to replace it", exit_code=ExitCode.USAGE
        )


@ckpt.command()
@click.argument("sources", nargs=-1, required=True, metavar="PATH...|RUN")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--world", type=click.IntRange(min=1), required=True, help="How many shards, one for each rank to be.")
@step_option
def reshard(sources: tuple[str, ...], out: Path, world: int, step: int | None) -> None:
    """Write the same checkpoint in other shards to OUT/step-N. A run needs no such thing: it loads any layout."""
    with numpy_needed():
        from models.checkpoint import convert

    with payload_errors(), _opened_reader(sources, step) as (source, view, reader):
        target = out / f"step-{view.step}"
        if target.exists():
            raise OstrainError(
                f"{target} exists", next_step="name another folder, or delete that one", exit_code=ExitCode.USAGE
            )
        with _progress("writing", reader.manifest.size) as progress:
            path = convert.reshard(reader, source.state(view), out, world, "-", progress)
    say(f"step {view.step} written to {path} in {world} shards ({_size(reader.manifest.size)})")


@ckpt.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--step", type=click.IntRange(min=0), help="This step of A and of B [default: the newest whole ones].")
@click.option("--ema", is_flag=True, help="With a safetensors file: compare it with the averages, not the model.")
@json_option
def diff(first: str, second: str, step: int | None, ema: bool, as_json: bool) -> int:
    """Compare two checkpoints (PATH or RUN) or safetensors files, tensor by tensor. Exits with 1 if they differ."""
    with numpy_needed():
        from models.checkpoint.compare import changed_facts, compare

    with payload_errors(), contextlib.ExitStack() as stack:
        kind = (
            ("ema" if ema else "model") if first.endswith(".safetensors") or second.endswith(".safetensors") else None
        )
        left, left_facts = stack.enter_context(_tensors(first, step, kind))
        right, right_facts = stack.enter_context(_tensors(second, step, kind))
        size = sum(4 * math.prod(shape) for shape in left.shapes().values())
        progress = stack.enter_context(_progress("comparing", size))
        found = list(compare(left, right, ("model",) if kind else None, progress))
    # The time of writing is no difference.
    facts = [] if left_facts is None or right_facts is None else changed_facts(left_facts, right_facts)
    facts = [fact for fact in facts if fact[0] != "time"]
    if as_json:
        # NaN is no JSON.
        rows = [{"tensor": one.key, "what": one.what, "max_abs": _number(one.largest)} for one in found]
        emit_json({"tensors": rows, "facts": [{"name": n, "a": a, "b": b} for n, a, b in facts], "equal": not found})
    else:
        for name, a, b in facts:
            click.echo(f"{name}: {a} | {b}")
        if found:
            shown = [[one.key, one.what, "-" if one.largest is None else f"{one.largest:.6g}"] for one in found]
            click.echo(table(shown, ("TENSOR", "DIFFERS", "MAX ABS")))
        say(
            f"{len(found)} of {len({*left.shapes(), *right.shapes()})} tensors differ"
            if found
            else "all tensors are equal"
        )
    return int(ExitCode.RUN_FAILED if found or facts else ExitCode.OK)


def _number(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)


@contextlib.contextmanager
def _tensors(word: str, step: int | None, kind: str | None) -> Iterator[tuple[Tensors, dict[str, Any] | None]]:
    """Tensors of a safetensors file or a checkpoint, and the facts where there are any."""
    from models.checkpoint.compare import CheckpointTensors, FileTensors
    from models.checkpoint.tensors import BadTensors

    if Path(word).is_file():
        try:
            tensors = FileTensors(Path(word))
        except (BadTensors, OSError) as error:
            raise OstrainError(
                "not a safetensors file that can be read", where=word, why=str(error), exit_code=ExitCode.USAGE
            ) from error
        yield tensors, None
        return
    with _opened_reader((word,), step) as (_, view, reader):
        yield CheckpointTensors(reader, kind), view.state


@contextlib.contextmanager
def _opened_reader(words: tuple[str, ...], step: int | None) -> Iterator[tuple[Source, View, Reader]]:
    """A checkpoint with all its shards here and hash-checked."""
    from models.checkpoint.read import Reader
    from models.checkpoint.view import verify as verify_view
    from ostrain.checkpoints import opened

    with opened(words) as source:
        view = source.chosen(step)
        assert view.manifest is not None
        with _progress("verifying", _stored(view)) as progress:
            good = verify_view(view, progress)
        if len(good) < len(view.manifest.shards):
            raise OstrainError(
                f"step {view.step} is damaged",
                where=source.name,
                why="\n    ".join(["", *view.problems[:20]]),
                next_step="name another step; ostrain ckpt verify tells which are whole",
                exit_code=ExitCode.RUN_FAILED,
            )
        for error in source.errors:
            say(str(error))
        with _progress("fetching", view.manifest.size) as progress:
            paths = source.paths(view, good, progress)
        with Reader(view.manifest, paths) as reader:
            yield source, view, reader


@contextlib.contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal's standard error; nothing elsewhere, or for little work."""
    if not sys.stderr.isatty() or total < 256 << 20:
        yield lambda size: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda size: bar.advance(task, size)

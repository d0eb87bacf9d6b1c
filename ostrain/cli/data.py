"""``ostrain data``: annotations made, filtered, counted; captions and clips encoded ahead of training."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ostrain.cli.common import json_option, numpy_needed, payload_errors
from ostrain.errors import OstrainError
from ostrain.states import ExitCode
from ostrain.talk import emit_json, say, table

if TYPE_CHECKING:
    from models.config import TrainConfig

_SHOWN = 10
# Threads that read headers.
_READERS = 8

path_type = click.Path(path_type=Path)
set_option = click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Set any key; may be repeated.")
config_option = click.option("--config", type=path_type, metavar="YAML", help="Keys of the task; options win.")
recipe_option = click.option("--recipe", metavar="NAME", help="Bundled defaults of the task.")
run_dir_option = click.option("--run-dir", type=path_type, metavar="DIR", help="Logs [default: OUT/.run].")
workers_option = click.option(
    "--workers", type=click.IntRange(1, 1024), default=1, show_default=True, help="Processes that share it."
)
video_column_option = click.option("--video-column", default="video", show_default=True, metavar="NAME")


@click.group()
def data() -> None:
    """Make, check and count annotations; encode captions and clips before training.

    docs/data.md tells how the files look like. What runs longer than a shell shall live is a job with `embed_text:` or
    `cache_latents:` (docs/jobs.md).
    """


@data.command("embed-text")
@click.argument("source", type=path_type, metavar="CSV|TXT", required=False)
@click.option("-o", "--out", type=path_type, metavar="DIR", help="Folder for the embeddings.")
@click.option("--t5", metavar="DIR", help="Hugging Face folder of a T5 v1.1.")
@click.option("--hashed", is_flag=True, help="Stand-in vectors without weights, for tests and demonstrations.")
@click.option("--max-length", type=click.IntRange(2), help="Tokens of a caption: 120 (1.0), 200 (1.1), 300 (1.2).")
@click.option("--channels", type=click.IntRange(1), help="With --hashed: numbers of a token.")
@click.option("--dtype", type=click.Choice(("fp32", "fp16", "bf16")), help="Type T5 computes in.")
@click.option("--batch-size", type=click.IntRange(1), help="Captions at once.")
@video_column_option
@click.option("--caption-column", default="caption", show_default=True, metavar="NAME")
@click.option("--overwrite", is_flag=True, help="Embed again what is there.")
@recipe_option
@config_option
@set_option
@workers_option
@run_dir_option
@json_option
def embed_text(source: Path | None, config: Path | None, overrides: tuple[str, ...], **options: Any) -> int:
    """Embed the captions of a CSV (columns video, caption), or the prompts of a text file, one a line.

    Of a CSV come OUT/<video without suffix>.npz with text_emb and mask, of a text file OUT/<number>-<first words>.npz.
    An interrupted command, given again, makes what is missing.
    """
    texts: list[str] = []
    if source is not None:
        texts += [_set("prompts" if source.suffix.lower() == ".txt" else "annotations", str(source))]
    if options["t5"] and options["hashed"]:
        raise click.UsageError("--t5 and --hashed exclude each other")
    if options["t5"] or options["hashed"]:
        texts += [_set("text.type", "t5" if options["t5"] else "hashed")]
    named = {
        "recipe": options["recipe"],
        "out": _text(options["out"]),
        "text.pretrained": options["t5"],
        "text.max_length": options["max_length"],
        "text.channels": options["channels"],
        "text.dtype": options["dtype"],
        "batch_size": options["batch_size"],
        "video_column": _unless(options["video_column"], "video"),
        "caption_column": _unless(options["caption_column"], "caption"),
        "overwrite": options["overwrite"] or None,
    }
    return _task("embed_text", config, [*texts, *_sets(named), *overrides], options)


@data.command("cache-latents")
@click.argument("csv", type=path_type, metavar="CSV", required=False)
@click.option("-o", "--out", type=path_type, metavar="DIR", help="Folder for the latents.")
@click.option("--videos", type=path_type, metavar="DIR", help="Folder that paths in the CSV start at.")
@click.option("--autoencoder", metavar="TYPE", help="VideoAutoencoderKL, OpenSoraVAE_V1_2 or identity.")
@click.option("--pretrained", metavar="FILE", help="Weights of the autoencoder.")
@click.option("--image-size", "sizes", nargs=2, type=click.IntRange(1), multiple=True, metavar="H W",
              help="Pixels; several make a folder latent_HxW each.")  # fmt: skip
@click.option("--transform", type=click.Choice(("crop_resize", "center", "resize_by_max_value")))
@click.option("--max-image-size", type=click.IntRange(1), help="Keep aspect ratios; H x W at most this squared (FiT).")
@click.option("--frame-stride", type=click.IntRange(1), help="Every n-th frame.")
@click.option("--num-frames", type=click.IntRange(1), help="The first so many frames [default: all].")
@click.option("--chunk-frames", type=click.IntRange(1), help="Frames decoded and encoded at once.")
@click.option("--mean-only", is_flag=True, help="No latent_std: half the space, no posterior samples.")
@video_column_option
@click.option("--overwrite", is_flag=True, help="Encode again what is there.")
@recipe_option
@config_option
@set_option
@workers_option
@run_dir_option
@json_option
def cache_latents(csv: Path | None, config: Path | None, overrides: tuple[str, ...], **options: Any) -> int:
    """Encode the clips of a CSV with an autoencoder, for training on latents.

    OUT/<video without suffix>.npz holds latent_mean, latent_std, fps and ori_size. An interrupted command, given again,
    makes what is missing.
    """
    sizes = [list(size) for size in options["sizes"]] or None
    fit = options["max_image_size"] is not None and options["transform"] is None
    named = {
        "recipe": options["recipe"],
        "annotations": _text(csv),
        "out": _text(options["out"]),
        "videos": _text(options["videos"]),
        "autoencoder.type": options["autoencoder"],
        "autoencoder.pretrained": options["pretrained"],
        "image_sizes": sizes,
        "transform": "resize_by_max_value" if fit else options["transform"],
        "max_image_size": options["max_image_size"],
        "frame_stride": options["frame_stride"],
        "num_frames": options["num_frames"],
        "chunk_frames": options["chunk_frames"],
        "save_distribution": False if options["mean_only"] else None,
        "video_column": _unless(options["video_column"], "video"),
        "overwrite": options["overwrite"] or None,
    }
    return _task("cache_latents", config, [*_sets(named), *overrides], options)


def _task(task: str, config: Path | None, overrides: list[str], options: dict[str, Any]) -> int:
    from ostrain.data.encode import load_values, run_task

    _, values = load_values(task, config, overrides)
    if not values.get("out"):
        raise click.UsageError("no folder for the results: -o DIR")
    summary = run_task(task, values, options["run_dir"], options["workers"])
    if options["as_json"]:
        emit_json(summary)
    else:
        click.echo(f"{summary['done']} made, {summary['kept']} were there, {summary['failed']} failed: {values['out']}")
    return int(ExitCode.RUN_FAILED if summary["failed"] else ExitCode.OK)


def _set(key: str, value: Any) -> str:
    """``--set`` text for a value as it is."""
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def _sets(named: dict[str, Any]) -> list[str]:
    return [_set(key, value) for key, value in named.items() if value is not None]


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _unless(value: str, default: str) -> str | None:
    return None if value == default else value


@data.command()
@click.argument("folder", type=path_type)
@click.option("-o", "--out", type=path_type, required=True, metavar="CSV")
@click.option("--captions", "way", default="auto", show_default=True,
              type=click.Choice(("auto", "text", "folder", "name", "none")),
              help="From <clip>.txt beside it, its folder's name (UCF-101), its own name; auto: text, else folder.",
              )  # fmt: skip
@click.option("--force", is_flag=True, help="Replace CSV if it exists.")
@json_option
def annotate(folder: Path, out: Path, way: str, force: bool, as_json: bool) -> int:
    """List the clips and images below FOLDER in a CSV, with captions. Clips without one are named and left out."""
    from ostrain.data.annotate import annotate as annotate_folder
    from ostrain.data.annotate import write_csv

    with payload_errors():
        found = annotate_folder(folder, way)
        if not found.rows:
            raise OstrainError(
                f"none of the {len(found.without)} clips has a caption", where=str(folder),
                next_step="write <clip>.txt beside the clips, or add --captions name or none",
            )  # fmt: skip
        header, rows = ("video", "caption"), found.rows
        write_csv(out, header[:1] if way == "none" else header, [row[:1] if way == "none" else row for row in rows],
                  force)  # fmt: skip
    if as_json:
        emit_json({"clips": len(found.rows), "captions": found.sources, "without_caption": found.without})
        return 0
    _list("no caption", found.without)
    told = ", ".join(f"{count} from {source}" for source, count in sorted(found.sources.items()))
    click.echo(f"{len(found.rows)} clips in {out}, captions: {told}; {len(found.without)} left out")
    return 0


@data.command("filter")
@click.argument("csv", type=path_type)
@click.option("-o", "--out", type=path_type, metavar="CSV", help="The rows that stay [default: only tell].")
@click.option("--videos", type=path_type, metavar="DIR", help="Folder of the videos.")
@click.option("--text-embeddings", type=path_type, metavar="DIR", help="Folder of their embeddings.")
@click.option("--latents", type=path_type, metavar="DIR", help="Folder of their latents.")
@click.option("--deep", is_flag=True, help="Decode a frame of every video, too.")
@video_column_option
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@json_option
def filter_command(
    csv: Path,
    out: Path | None,
    videos: Path | None,
    text_embeddings: Path | None,
    latents: Path | None,
    deep: bool,
    video_column: str,
    force: bool,
    as_json: bool,
) -> int:
    """Drop rows of a CSV whose video, embedding or latents are missing, and tell which. All columns stay."""
    from ostrain.data.annotate import Places, filter_rows, write_csv

    if videos is None and text_embeddings is None and latents is None:
        raise click.UsageError("name what has to be there: --videos, --text-embeddings or --latents")
    for folder in (videos, text_embeddings, latents):
        if folder is not None and not folder.is_dir():
            raise OstrainError(f"there is no folder {folder}", next_step="correct it", exit_code=int(ExitCode.USAGE))
    with numpy_needed(), payload_errors():
        result = filter_rows(csv, video_column, Places(videos, text_embeddings, latents, deep))
        if not result.kept:
            line, video, reason = result.dropped[0]
            raise OstrainError(
                f"none of the {len(result.dropped)} rows stays", where=f"{csv}:{line}", why=f"{video}: {reason}",
                next_step="correct the folders, or the paths in the CSV",
            )  # fmt: skip
        if out is not None:
            write_csv(out, result.header, result.kept, force)
    if as_json:
        emit_json(result.as_json())
        return 0
    _list("dropped", [f"{video} (line {line}): {reason}" for line, video, reason in result.dropped])
    written = f" in {out}" if out is not None else ""
    click.echo(f"{len(result.kept)} rows stay{written}, {len(result.dropped)} dropped")
    return 0


def _list(what: str, lines: list[str]) -> None:
    for line in lines[:_SHOWN]:
        say(f"{what}: {line}")
    if len(lines) > _SHOWN:
        say(f"… and {len(lines) - _SHOWN} more; --json names all")


@data.command()
@click.argument("csv", type=path_type)
@click.option("--ratio", type=click.FloatRange(0, 1), default=0.8, show_default=True, help="Share of the first part.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--force", is_flag=True, help="Replace files that exist.")
def split(csv: Path, ratio: float, seed: int, force: bool) -> int:
    """Split a CSV at random into <name>_train.csv and <name>_test.csv."""
    from ostrain.data.annotate import split_rows, write_csv

    with payload_errors():
        from models.data.annotations import read_table

        found = read_table(csv, ["video"] if csv.exists() else [])
        parts = split_rows([fields for _, fields in found.rows], ratio, seed)
        for name, rows in zip(("train", "test"), parts, strict=True):
            path = csv.with_name(f"{csv.stem}_{name}.csv")
            write_csv(path, found.header, rows, force)
            click.echo(f"{len(rows)} rows in {path}")
    return 0


@data.command()
@click.argument("csv", type=path_type)
@click.option("--recipe", metavar="NAME", help="A training recipe, for example opensora_v1_2/stage1.")
@click.option("--job", type=path_type, help="A training job.")
@click.option("--videos", type=path_type, metavar="DIR", help="Folder of the videos [default: that of the job].")
@click.option("--latents", type=path_type, metavar="DIR", help="Folder of cached latents in place of videos.")
@set_option
@click.option("--epochs", type=click.IntRange(1), default=1, show_default=True, help="Passes over the data.")
@click.option("--replicas", type=click.IntRange(1), default=1, show_default=True,
              help="Workers (or groups of sp) x accumulation steps.")  # fmt: skip
@click.option("-p", "--picture", type=path_type, metavar="PNG", help="Draw the distribution.")
@json_option
def buckets(
    csv: Path,
    recipe: str | None,
    job: Path | None,
    videos: Path | None,
    latents: Path | None,
    overrides: tuple[str, ...],
    epochs: int,
    replicas: int,
    picture: Path | None,
    as_json: bool,
) -> int:
    """Tell how many samples of a CSV fall into each bucket of a recipe or job, and how many steps they make."""
    if (recipe is None) == (job is None):
        raise click.UsageError("name one of --recipe and --job")
    config = _training(recipe, job, overrides, {"annotations": csv, "videos": videos, "latents": latents})
    with numpy_needed(), payload_errors():
        from ostrain.data.buckets import draw, statistics

        with _headers_read() as progress:
            found = statistics(config, csv, epochs, replicas, progress)
        if picture is not None:
            draw(found, f"{csv.name}: {found.clips} clips under {recipe or job}", picture)
    if as_json:
        emit_json(found.as_json())
        return 0
    total = max(1, sum(found.samples.values()))
    rows = [
        [name, count, f"{100 * count / total:.1f} %", found.sizes[name], found.batches[name]]
        for name, count in found.samples.items()
    ]
    click.echo(table(rows, ("BUCKET", "SAMPLES", "SHARE", "BATCH", "STEPS")))
    for reason, count in found.unusable.most_common(_SHOWN):
        say(f"cannot be used: {count} clips: {reason}")
    click.echo(
        f"{found.clips} clips, {total if found.samples else 0} samples and {sum(found.batches.values())} full steps in "
        f"{epochs} epoch{'s' if epochs > 1 else ''}; {found.dropped} kept by no bucket"
    )
    if picture is not None:
        say(f"picture: {picture}")
    return 0


def _training(
    recipe: str | None, job: Path | None, overrides: tuple[str, ...], paths: dict[str, Path | None]
) -> TrainConfig:
    """The training's configuration, with the paths of this machine."""
    from models.config import TrainConfig
    from ostrain.data.encode import load_values

    if job is not None:
        from ostrain.spec import load_job

        config = load_job(job, overrides).job.train
        if config is None:
            raise OstrainError(f"{job} trains nothing", next_step="name a job with `train:`", exit_code=2)
    else:
        loaded, _ = load_values("train", None, [_set("recipe", recipe), *overrides])
        assert isinstance(loaded, TrainConfig)
        config = loaded
    given: dict[str, Any] = {key: str(path) for key, path in paths.items() if path is not None}
    given["workers"] = _READERS
    return config.model_copy(update={"data": config.data.model_copy(update=given)})


@contextlib.contextmanager
def _headers_read() -> Iterator[Callable[[int], None]]:
    """A count of the headers that are read, on a terminal."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import Progress, TextColumn

    with Progress(TextColumn("headers read: {task.completed}"), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("headers", total=None)
        yield lambda count: bar.advance(task, count)

"""How well an autoencoder rebuilds clips: PSNR, SSIM and LPIPS of each and of all, shared by the ranks of a task."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from mindspore import Tensor

from models import rng
from models.config import AutoencoderConfig
from models.config.eval_vae import EvalVaeConfig
from models.convert.names import to_torch
from models.data.annotations import read_annotations
from models.data.decode import IMAGE_SUFFIXES, DecodeError, read_frames, read_header
from models.data.sharing import Counter, share
from models.data.transforms import resize_crop_to_fill_image, resize_crop_to_fill_video
from models.exits import BAD_DATA, PayloadError
from models.files import append, write_atomic
from models.sampling.weights import Source, find_weights, read_weights
from models.sampling.writers import to_bytes, write_result
from models.task import Task
from models.vae import build, build_network, wrap
from models.vae.autoencoder import Autoencoder
from models.vae.autoencoder_kl import as_rows
from models.vae.critic import PREFIX
from models.vae.loading import fill, whole_names
from models.vae.lpips import LPIPS
from models.vae.metrics import as_unit, psnr, ssim
from models.vae.perceptual import build_perceptual

CLIP_SUFFIXES = {".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".gif", ".ts", *IMAGE_SUFFIXES}
RECORDS = "clips.jsonl"
_LPIPS_FRAMES = 8


@dataclass(frozen=True)
class ClipFile:
    """A clip to measure: its name and where it is."""

    name: str
    path: Path


@dataclass(frozen=True)
class Record:
    """What was measured of one clip: means over its frames. problem: why nothing was; numbers are None then."""

    clip: str
    frames: int = 0
    height: int = 0
    width: int = 0
    psnr: float | None = None
    ssim: float | None = None
    lpips: float | None = None
    seconds: float = 0.0
    saved: str | None = None
    problem: str | None = None


class Evaluator:
    """One rank of an evaluation."""

    def __init__(self, config: EvalVaeConfig, task: Task) -> None:
        self.config, self.task = config, task
        self.folder = task.run_dir / config.output
        self.clips = find_clips(config, task.run_dir)
        self.autoencoder, about = load_autoencoder(config, task.run_dir)
        perceptual = config.perceptual
        self.distance = None if perceptual is None else build_perceptual(perceptual, task.run_dir, config.seed)
        if task.world.rank == 0:
            task.log.info(f"{self.autoencoder.config.type} with {about}, {len(self.clips)} clips")
            if self.autoencoder.note:
                task.log.info(self.autoencoder.note)

    def run(self) -> None:
        """Measures this rank's clips; rank 0 writes what all ranks found. PayloadError if no clip could be used."""
        task = self.task
        counter = Counter(task, "clips", len(share(range(len(self.clips)), task)))
        task.report.heartbeat(0, "step")
        self.folder.mkdir(parents=True, exist_ok=True)
        own = []
        for number in share(range(len(self.clips)), task):
            record = self._record(number)
            own.append(record)
            append(self.folder / RECORDS, (json.dumps(asdict(record)) + "\n").encode())
            counter.add("failed" if record.problem else "done")
        told = task.world.gather_bytes(json.dumps([asdict(record) for record in own]).encode())
        by_rank = [[Record(**record) for record in json.loads(data)] for data in told]
        size = task.world.size
        records = [by_rank[number % size][number // size] for number in range(len(self.clips))]
        if all(record.problem for record in records):
            raise PayloadError(
                BAD_DATA,
                f"none of the {len(records)} clips can be used",
                where=str(self.clips[0].path),
                why="; ".join(f"{record.clip}: {record.problem}" for record in records[:5]),
                next_step="correct data.videos, or the paths in the annotations",
            )
        if task.world.rank == 0:
            write_results(self.folder, records)
            for line in table(records):
                task.log.info(line)
        counter.finish("eval_finished", **means(records))

    def _record(self, number: int) -> Record:
        clip, start = self.clips[number], time.perf_counter()
        try:
            pixels, fps = read_clip(self.config, clip.path, self.autoencoder.patch_size)
            found = self._measure(pixels, number)
        except (DecodeError, ValueError) as error:
            self.task.log.warning(f"clip skipped: {clip.path} ({error})")
            return Record(clip.name, problem=str(error))
        record, rebuilt = found
        saved = self._save(clip, pixels, rebuilt, fps) if self.config.save else None
        return replace(record, clip=clip.name, saved=saved, seconds=round(time.perf_counter() - start, 3))

    def _measure(self, pixels: np.ndarray, number: int) -> tuple[Record, np.ndarray]:
        """pixels float32 [3, T, H, W] in [-1, 1] -> the measures, and the reconstruction."""
        frames, height, width = pixels.shape[1:]
        noise = None
        if self.config.sample:
            streams = [rng.stream(self.config.seed, "posterior noise", number)]
            noise = self.autoencoder.draw_noise(streams, (frames, height, width))
        x = Tensor(pixels[None])
        rebuilt = self.autoencoder.decode(self.autoencoder.encode(x, noise), frames)
        result = np.clip(rebuilt.asnumpy()[0], -1.0, 1.0)
        a, b = (as_unit(part).transpose(1, 0, 2, 3) for part in (pixels, result))
        record = Record(
            "",
            frames,
            height,
            width,
            psnr=float(psnr(a, b).mean()),
            ssim=float(ssim(a, b, self.config.ssim).mean()),
            lpips=None if self.distance is None else distance(self.distance, pixels, result),
        )
        return record, result

    def _save(self, clip: ClipFile, pixels: np.ndarray, rebuilt: np.ndarray, fps: float) -> str:
        """The clip and, to its right, its reconstruction."""
        frames = np.concatenate([to_bytes(pixels), to_bytes(rebuilt)], axis=2)
        path = write_result(self.folder / "pairs" / Path(clip.name).with_suffix(""), frames, "mp4", fps)
        return str(path.relative_to(self.task.run_dir))


def find_clips(config: EvalVaeConfig, run_dir: Path) -> list[ClipFile]:
    """The rows of the annotations, or all clips and pictures of the folder, by name. PayloadError for none."""
    data, videos = config.data, run_dir / config.data.videos
    if data.annotations:
        rows = read_annotations(run_dir / data.annotations, data.video_column, None)
        found = [ClipFile(row.video, videos / row.video) for row in rows]
    elif videos.is_file():
        found = [ClipFile(videos.name, videos)]
    else:
        paths = sorted(path for path in videos.rglob("*") if path.suffix.lower() in CLIP_SUFFIXES and path.is_file())
        found = [ClipFile(str(path.relative_to(videos)), path) for path in paths]
    if not found:
        raise PayloadError(
            BAD_DATA,
            "there are no clips to measure",
            where=str(videos),
            why="the folder does not exist" if not videos.exists() else "it holds no videos or pictures",
            next_step="name a folder, a clip or a CSV in data.videos or data.annotations",
        )
    return found[: config.limit]


def load_autoencoder(config: EvalVaeConfig, run_dir: Path) -> tuple[Autoencoder, str]:
    """The autoencoder and what its weights are. A checkpoint knows what it is a checkpoint of. PayloadError."""
    if config.weights is None:
        named = config.autoencoder.pretrained or config.autoencoder.pretrained_2d
        return build(config.autoencoder, folder=run_dir), f"weights of {named}" if named else "no weights"
    try:
        source = find_weights(run_dir / config.weights)
    except PayloadError as error:
        raise PayloadError(
            error.exit_code, error.what, where=error.where, why=error.why, next_step="correct weights"
        ) from None
    own = _described(config.autoencoder, source)
    stored, about = read_weights(source, config.ema)
    network = build_network(own, seed=0)
    weights = {to_torch(name): value.values() for name, value in stored.items() if not name.startswith(PREFIX)}
    fill(network, whole_names(weights, network), source.path)
    return wrap(own, network), about


def _described(config: AutoencoderConfig, source: Source) -> AutoencoderConfig:
    """What the checkpoint's run trained, with the pieces of work of this configuration."""
    told = source.config.get("autoencoder")
    if not isinstance(told, dict):
        return config
    own = {"micro_batch_size": config.micro_batch_size, "tiling": config.tiling, "dtype": config.dtype}
    return AutoencoderConfig.model_validate({**told, "pretrained": None, "pretrained_2d": None}).model_copy(update=own)


def read_clip(config: EvalVaeConfig, path: Path, patch: tuple[int, int, int]) -> tuple[np.ndarray, float]:
    """float32 [3, T, H, W] in [-1, 1] and frames a second. DecodeError; ValueError for frames smaller than a latent."""
    header, image = read_header(path), path.suffix.lower() in IMAGE_SUFFIXES
    step = config.data.frame_interval
    wanted = np.arange(0, header.frames, step)[: config.data.num_frames]
    frames = read_frames(path, wanted)
    size = config.data.image_size
    if size is None:
        size = (header.height // patch[1] * patch[1], header.width // patch[2] * patch[2])
        if 0 in size:
            raise ValueError(f"frames of {header.height}x{header.width} are smaller than a latent")
        top, left = (header.height - size[0]) // 2, (header.width - size[1]) // 2
        frames = frames[:, top : top + size[0], left : left + size[1]]
    if image:
        pixels = resize_crop_to_fill_image(frames[0], size)[None]
    else:
        pixels = resize_crop_to_fill_video(frames, size)
    return np.ascontiguousarray(pixels.transpose(1, 0, 2, 3)), max(header.fps, 1.0) / step


def distance(model: LPIPS, a: np.ndarray, b: np.ndarray) -> float:
    """Mean LPIPS over the frames of clips [3, T, H, W], a few frames at a time."""
    total = 0.0
    for start in range(0, a.shape[1], _LPIPS_FRAMES):
        parts = [as_rows(Tensor(clip[None, :, start : start + _LPIPS_FRAMES].copy())) for clip in (a, b)]
        total += float(model(*parts).sum().asnumpy())
    return total / a.shape[1]


def means(records: Sequence[Record]) -> dict[str, float | None]:
    """Of each measure over the clips that have it."""
    found: dict[str, float | None] = {}
    for name in ("psnr", "ssim", "lpips"):
        values = [value for record in records if (value := getattr(record, name)) is not None]
        found[name] = math.fsum(values) / len(values) if values else None
    return found


def write_results(folder: Path, records: Sequence[Record]) -> None:
    """``results.json`` (clips and means) and ``results.csv``."""
    text = json.dumps({"mean": means(records), "clips": [asdict(record) for record in records]}, indent=1)
    write_atomic(folder / "results.json", (text + "\n").encode())
    rows = io.StringIO()
    writer = csv.DictWriter(rows, list(asdict(records[0])))
    writer.writeheader()
    writer.writerows([asdict(record) for record in records])
    write_atomic(folder / "results.csv", rows.getvalue().encode())


def table(records: Sequence[Record]) -> list[str]:
    """Lines for the log: the mean, and what failed."""
    numbers = ", ".join(f"{name} {value:.4f}" for name, value in means(records).items() if value is not None)
    failed = sum(record.problem is not None for record in records)
    return [f"mean of {len(records) - failed} clips: {numbers}" + (f"; {failed} failed" if failed else "")]

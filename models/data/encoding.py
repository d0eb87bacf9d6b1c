"""Clips to files of cached latents, for one rank."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.config.cache_latents import CacheLatentsConfig
from models.data.annotations import Row, read_annotations
from models.data.decode import IMAGE_SUFFIXES, DecodeError, Header, read_frames, read_header
from models.data.fit import fit_size
from models.data.latents import SETTINGS, read_latent_header, read_settings
from models.data.names import npz_name
from models.data.npz import write_npz
from models.data.sharing import Counter, share
from models.data.transforms import Size, resize_crop_to_fill_image, resize_crop_to_fill_video, resize_video
from models.data.transforms import short_side_crop_video as center_crop
from models.exits import BAD_CONFIG, BAD_DATA, PayloadError
from models.files import write_atomic
from models.task import Task

# Chunks that are decoded ahead while the device encodes.
_AHEAD = 2


@dataclass(frozen=True)
class Target:
    """A clip, the size its frames are brought to (None: by max_image_size), and the file of its latents."""

    row: Row
    size: Size | None
    path: Path


def encode_all(config: CacheLatentsConfig, task: Task) -> None:
    """Encodes this rank's share and tells what became of it. PayloadError: bad annotations, or nothing usable."""
    targets = targets_of(config, task.run_dir)
    _claim(config, task)
    mine = share(targets, task)
    task.log.info(f"{len(targets)} files of latents, {len(mine)} of them for rank {task.world.rank}")
    task.report.heartbeat(0, "loading")
    from models.vae import build

    autoencoder = build(config.autoencoder, folder=task.run_dir)
    if autoencoder.note:
        task.log.info(autoencoder.note)
    counter = Counter(task, "latents", len(mine))
    with ThreadPoolExecutor(config.workers, "decode") as pool:
        encoding = _Encoding(config, task, autoencoder, pool)
        for target in mine:
            counter.add(encoding.run(target))
    summary = counter.finish("latents_cached", out=str(task.run_dir / config.out))
    if not summary["done"] and not summary["kept"]:
        raise PayloadError(
            BAD_DATA,
            f"none of the {len(targets)} clips could be encoded",
            where=str(task.run_dir / config.annotations),
            why="the clips are named above, and in events.jsonl",
            next_step="correct videos, or the paths in the annotations",
        )


def targets_of(config: CacheLatentsConfig, base: Path) -> list[Target]:
    """Every file to be made, clip by clip. PayloadError: unreadable annotations, paths that lead out of ``out``."""
    annotations, out = base / config.annotations, base / config.out
    sizes: list[Size | None] = list(config.image_sizes) or [None]
    found: dict[Path, Target] = {}
    for row in read_annotations(annotations, config.video_column, None):
        try:
            name = npz_name(row.video)
        except ValueError as error:
            raise _bad_row(annotations, row, "latents have no place", str(error)) from None
        for size in sizes:
            folder = out / f"latent_{size[0]}x{size[1]}" if size and len(sizes) > 1 else out
            target = Target(row, size, folder / name)
            other = found.setdefault(target.path, target)
            if other.row.video != row.video:
                why = f"{row.video} and {other.row.video} (line {other.row.line}) would both be {name}"
                raise _bad_row(annotations, row, "two clips for one file of latents", why)
    return list(found.values())


def _bad_row(path: Path, row: Row, what: str, why: str) -> PayloadError:
    next_step = "correct or rename the clip"
    return PayloadError(BAD_DATA, what, where=f"{path}:{row.line}", why=why, next_step=next_step)


def _claim(config: CacheLatentsConfig, task: Task) -> None:
    """Writes down how the latents of this folder are made; refuses a folder that was made in another way."""
    folder = task.run_dir / config.out
    settings = _settings(config)
    known = read_settings(folder)
    changed = [key for key in settings if key in known and known[key] != settings[key]]
    if changed and not config.overwrite:
        raise PayloadError(
            BAD_CONFIG,
            "the folder holds latents that were made in another way",
            where=str(folder / SETTINGS),
            why=", ".join(f"{key} was {known[key]}, is {settings[key]}" for key in changed),
            next_step="name another folder for out, or set overwrite to make all of them again",
        )
    task.world.barrier()
    if task.world.leader and known != settings:
        write_atomic(folder / SETTINGS, (json.dumps(settings, indent=1) + "\n").encode())


def _settings(config: CacheLatentsConfig) -> dict[str, Any]:
    """What makes latents what they are; as JSON gives it back."""
    keys = {
        "image_sizes": config.image_sizes,
        "transform": config.transform,
        "max_image_size": config.max_image_size,
        "multiple": config.multiple if config.max_image_size else None,
        "frame_stride": config.frame_stride,
        "num_frames": config.num_frames,
        "save_distribution": config.save_distribution,
        "autoencoder": config.autoencoder.model_dump(mode="json", exclude={"dtype", "micro_batch_size", "tiling"}),
    }
    found: dict[str, Any] = json.loads(json.dumps(keys))
    return found


class _Encoding:
    """Clips one by one: decoded in chunks ahead of the device, encoded, written."""

    def __init__(self, config: CacheLatentsConfig, task: Task, autoencoder: Any, pool: ThreadPoolExecutor) -> None:
        self._config, self._task, self._autoencoder, self._pool = config, task, autoencoder, pool

    def run(self, target: Target) -> str:
        """``kept``, ``done`` or ``failed``."""
        video = self._task.run_dir / self._config.videos / target.row.video
        if not self._config.overwrite and _whole(target.path, self._config.save_distribution):
            return "kept"
        try:
            header = read_header(video)
            arrays = self._encode(video, header, target.size)
        except (DecodeError, ValueError, PayloadError) as error:
            reason = error.why if isinstance(error, PayloadError) else str(error)
            self._task.log.warning(f"clip skipped: {video} ({reason})")
            facts = {"path": str(video), "line": target.row.line, "reason": reason}
            self._task.report.event("clip_skipped", **facts)
            return "failed"
        arrays["fps"] = np.array(header.fps, np.float64)
        arrays["ori_size"] = np.array([header.height, header.width], np.int32)
        write_npz(target.path, arrays)
        return "done"

    def _encode(self, video: Path, header: Header, size: Size | None) -> dict[str, np.ndarray]:
        from mindspore import Tensor

        means, stds = [], []
        for pixels in self._pixels(video, header, size):
            clip = Tensor(np.ascontiguousarray(pixels.transpose(1, 0, 2, 3)[None]))
            mean, std = self._autoencoder.posterior(clip)
            means.append(mean.asnumpy()[0].transpose(1, 0, 2, 3))
            if self._config.save_distribution:
                stds.append(std.asnumpy()[0].transpose(1, 0, 2, 3))
        named = {"latent_mean": means, "latent_std": stds}
        arrays = {name: np.concatenate(parts).astype(np.float32) for name, parts in named.items() if parts}
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise DecodeError("its latents are not finite")
        return arrays

    def _pixels(self, video: Path, header: Header, size: Size | None) -> Iterator[np.ndarray]:
        """Chunks float32 [T, 3, h, w], in order, decoded ahead of their use."""
        numbers = np.arange(0, header.frames, self._config.frame_stride)[: self._config.num_frames]
        chunks = np.split(numbers, range(self._step(len(numbers)), len(numbers), self._step(len(numbers))))
        waiting: deque[Future[np.ndarray]] = deque()
        image = video.suffix.lower() in IMAGE_SUFFIXES
        try:
            for chunk in chunks:
                waiting.append(self._pool.submit(self._resized, video, chunk, size, image))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _step(self, frames: int) -> int:
        """Frames of a chunk: whole chunks of the autoencoder, so that latents are those of the clip in one piece."""
        wanted = self._config.chunk_frames or frames
        autoencoder = self._config.autoencoder
        if autoencoder.patch_size[0] == 1:
            return max(1, wanted)
        return wanted // autoencoder.chunk * autoencoder.chunk if autoencoder.chunk else frames

    def _resized(self, video: Path, numbers: np.ndarray, size: Size | None, image: bool) -> np.ndarray:
        frames = read_frames(video, numbers)
        if size is None:
            assert self._config.max_image_size is not None
            height, width = frames.shape[1:3]
            return resize_video(frames, fit_size(height, width, self._config.max_image_size, self._config.multiple))
        if self._config.transform == "center":
            return center_crop(frames, size)
        if image:
            return np.stack([resize_crop_to_fill_image(frame, size) for frame in frames])
        return resize_crop_to_fill_video(frames, size)


def _whole(path: Path, with_std: bool) -> bool:
    """Whether the file is there and whole, by its arrays' headers."""
    try:
        read_latent_header(path)
    except DecodeError:
        # Not there, or cut short: it will be made.
        return False
    from models.data.npz import array_shapes

    return {"fps", "ori_size", *(("latent_std",) if with_std else ())} <= set(array_shapes(path))

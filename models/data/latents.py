"""Cached latents: files of a clip, windows of them, samples from their distribution.

Files are those of mindone's examples/opensora_hpcai (``infer_vae.py``): ``latent_mean`` and, where a sample is to be
drawn, ``latent_std``, float32 [T, C, h, w]; ``fps`` of the video and ``ori_size`` (height, width).

* VideoAutoencoderKL: one latent frame a frame, as the image autoencoder gives it, z = (mean + std noise) scale_factor.
  Samples are windows of ``num_frames`` frames out of it, ``frame_interval`` apart, like windows of a video.
* OpenSoraVAE_V1_2: T latent frames of chunks that were encoded by themselves (17 frames are 5 latent frames), scaled
  and shifted already: z = mean + std noise. Samples of a whole number of chunks start at any chunk; of another length
  they are the whole file. ``frame_interval`` is 1: how far frames are apart was decided when they were encoded.
* identity: the pixels.

``cache.json`` in the folder says how the files were made; folders of other tools lack it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.config import AutoencoderConfig
from models.data.bucket import Buckets, Choice, Draws, Shape
from models.data.decode import DecodeError, Header
from models.data.frames import frame_numbers
from models.data.npz import UNREADABLE, array_shapes, read_array, read_rows
from models.exits import BAD_DATA, PayloadError

SETTINGS = "cache.json"
# The number that names the draw of a clip's resolution, beside the numbers of buckets.
_RESOLUTION_DRAW = -1


@dataclass(frozen=True)
class LatentFile:
    """Latents of a clip in one resolution; ``size``: latent frames, height and width in latents, fps of the video."""

    path: Path
    size: Header


def read_latent_header(path: Path) -> Header:
    """Latent frames, height and width in latents, and the video's fps (0 where the file does not say). DecodeError."""
    try:
        shapes = array_shapes(path)
        mean = shapes.get("latent_mean")
        if mean is None:
            raise DecodeError(f"has no array 'latent_mean'; it holds {', '.join(shapes) or 'nothing'}")
        if len(mean) != 4 or 0 in mean:
            raise DecodeError(f"latent_mean has shape {list(mean)}, not [T, C, h, w]")
        if shapes.get("latent_std", mean) != mean:
            raise DecodeError(f"latent_std has shape {list(shapes['latent_std'])}, latent_mean {list(mean)}")
        fps = 0.0
        if shapes.get("fps") in ((), (1,)):
            fps = float(read_array(path, "fps").reshape(()))
    except UNREADABLE as error:
        raise DecodeError(f"not a readable npz ({error})") from None
    return Header(mean[0], mean[2], mean[3], fps if math.isfinite(fps) else 0.0)


def read_settings(folder: Path) -> dict[str, Any]:
    """What ``cache.json`` of a folder of latents says; nothing where there is none. PayloadError: damaged."""
    path = folder / SETTINGS
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise PayloadError(
            BAD_DATA, "settings of the cached latents cannot be read", where=str(path), why=str(error),
            next_step="cache the latents again, or delete that file if you know how they were made",
        ) from None  # fmt: skip
    return settings if isinstance(settings, dict) else {}


class LatentTime:
    """How frames of video and latent frames belong together."""

    def __init__(self, autoencoder: AutoencoderConfig) -> None:
        self._autoencoder = autoencoder
        self.temporal = autoencoder.patch_size[0] > 1
        self._chunk = autoencoder.chunk if self.temporal else None

    def latents(self, frames: int) -> int:
        """Latent frames of so many frames."""
        found = self._autoencoder.latent_size((frames, None, None))[0]
        assert found is not None
        return found

    def frames(self, latents: int) -> int:
        """The most frames that give so many latent frames."""
        factor = self._autoencoder.patch_size[0]
        if self._chunk is None:
            return latents * factor
        full, rest = divmod(latents, self.latents(self._chunk))
        return full * self._chunk + rest * factor

    def problem(self, latents: int, frames: int, interval: int) -> str:
        """Why no window of ``frames`` frames can be taken out of so many latent frames; empty where one can."""
        needed = self.latents(frames)
        if not self.temporal:
            # Like a video: windows that reach past the end are drawn together.
            return "" if latents >= frames else f"has {latents} latent frames, {frames} are needed"
        if latents == needed or (latents > needed and self._cuts_at_chunks(frames)):
            return ""
        if latents < needed:
            return f"has {latents} latent frames, {needed} are needed for {frames} frames"
        whole = f"{frames} frames are no multiple of {self._chunk}" if self._chunk else "it was encoded as a whole"
        return f"has {latents} latent frames, {needed} are needed exactly: {whole}"

    def window(self, latents: int, frames: int, interval: int, draw: float) -> np.ndarray:
        """Which latent frames a sample takes, int64; ``draw`` in [0, 1) picks the start."""
        if not self.temporal:
            return frame_numbers(latents, frames, interval, draw)
        needed = self.latents(frames)
        if latents == needed or self._chunk is None:
            return np.arange(needed)
        step = self.latents(self._chunk)
        start = int(draw * ((latents - needed) // step + 1)) * step
        return np.arange(start, start + needed)

    def _cuts_at_chunks(self, frames: int) -> bool:
        return self._chunk is not None and frames % self._chunk == 0


class LatentShapes:
    """The shape a clip of cached latents trains in. A clip in several resolutions takes one of them by lot.

    shape: the one that is wanted; None takes every clip in the size its latents have. buckets: decide on frames, batch
    size and whether a clip is kept at all, never on its size.
    """

    def __init__(
        self,
        autoencoder: AutoencoderConfig,
        frames: int,
        interval: int,
        batch_size: int,
        shape: Shape | None,
        buckets: Buckets | None,
    ) -> None:
        self._time = LatentTime(autoencoder)
        self._patch = autoencoder.patch_size
        self._frames, self._interval, self._batch_size = frames, interval, batch_size
        self._shape, self._buckets = shape, buckets

    def shape_of(self, size: Header, frames: int) -> Shape:
        """The shape, in frames and pixels, of a sample of latents of this size."""
        return Shape(frames, size.height * self._patch[1], size.width * self._patch[2])

    def problem(self, size: Header) -> str:
        """Why latents of this size cannot be trained on; empty where they can."""
        if self._buckets is not None:
            pixels = self.shape_of(size, self._bucket_frames(size))
            if self._buckets.can_take(pixels.frames, pixels.height, pixels.width, self._interval):
                return ""
            return f"fits no bucket ({size.frames} latent frames of {size.height}x{size.width})"
        if self._shape is not None:
            wanted = (self._shape.height // self._patch[1], self._shape.width // self._patch[2])
            if (size.height, size.width) != wanted:
                return f"latents are {size.height}x{size.width}, {wanted[0]}x{wanted[1]} are wanted"
        return self._time.problem(size.frames, self._frames, self._interval)

    def choose(self, files: Sequence[LatentFile], draws: Draws) -> Choice | None:
        """The shape for this use of a clip; None where no bucket keeps it."""
        place = int(draws(_RESOLUTION_DRAW).integers(len(files))) if len(files) > 1 else 0
        size = files[place].size
        if self._buckets is None:
            shape = self._shape or self.shape_of(size, self._frames)
            return Choice(str(shape), shape, self._batch_size)
        pixels = self.shape_of(size, self._bucket_frames(size))
        found = self._buckets.choose(pixels.frames, pixels.height, pixels.width, self._interval, draws)
        if found is None or self._time.problem(size.frames, found.shape.frames, self._interval):
            return None
        shape = self.shape_of(size, found.shape.frames)
        return Choice(f"{found.name}@{shape.height}x{shape.width}", shape, found.batch_size)

    def _bucket_frames(self, size: Header) -> int:
        """Buckets take clips with more frames than they have; temporal latents may fill theirs exactly."""
        return self._time.frames(size.frames) + (1 if self._time.temporal else 0)


class LatentReader:
    """Samples of cached latents. Safe for several threads."""

    def __init__(self, autoencoder: AutoencoderConfig, interval: int) -> None:
        self._time = LatentTime(autoencoder)
        self._patch = autoencoder.patch_size
        self._interval = interval
        self._scale = np.float32(autoencoder.scale_factor if autoencoder.type == "VideoAutoencoderKL" else 1.0)

    def read(
        self, files: Sequence[LatentFile], shape: Shape, channels: int, draw: float, noise: np.random.Generator
    ) -> np.ndarray:
        """z float32 [channels, t, h, w] for a sample of ``shape``. DecodeError.

        draw in [0, 1): where the window starts. noise: for the sample of the distribution, drawn in z's order, as the
        autoencoder draws it when it encodes.
        """
        wanted = (shape.height // self._patch[1], shape.width // self._patch[2])
        file = next((file for file in files if (file.size.height, file.size.width) == wanted), None)
        if file is None:
            raise DecodeError(f"has no latents of {wanted[0]}x{wanted[1]}")
        numbers = self._time.window(file.size.frames, shape.frames, self._interval, draw)
        try:
            shapes = array_shapes(file.path)
            expected = (file.size.frames, channels, *wanted)
            if shapes["latent_mean"] != expected:
                raise DecodeError(f"latent_mean has shape {list(shapes['latent_mean'])}, not {list(expected)}")
            z = _frames(file.path, "latent_mean", numbers)
            if "latent_std" in shapes:
                z = z + _frames(file.path, "latent_std", numbers) * noise.standard_normal(z.shape, np.float32)
        except (*UNREADABLE, KeyError) as error:
            raise DecodeError(f"latents cannot be read ({error})") from None
        if not np.isfinite(z).all():
            raise DecodeError("latents hold values that are not finite")
        return np.ascontiguousarray(z * self._scale)


def _frames(path: Path, name: str, numbers: np.ndarray) -> np.ndarray:
    """Latent frames of an array, ascending: float32 [C, t, h, w]."""
    first, last = int(numbers[0]), int(numbers[-1])
    rows = read_rows(path, name, first, last + 1)[numbers - first]
    return rows.astype(np.float32).transpose(1, 0, 2, 3)

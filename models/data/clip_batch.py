"""Samples and batches of clips alone, for training autoencoders: pixels and the noise that draws latents.

Every draw is keyed by (seed, purpose, step, slot in the global batch) or by the sample's place in its epoch, so that a
sample is the same whichever rank and micro step it falls to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from models import rng
from models.config.train_vae import TrainVaeConfig
from models.data.batch import Failure
from models.data.bucket import Shape
from models.data.catalogue import Clip
from models.data.decode import IMAGE_SUFFIXES, DecodeError, read_frames
from models.data.frames import Frames, frame_numbers
from models.data.order import GlobalBatch, Order, Sample
from models.data.transforms import Place, resize_crop_to_fill_image, resize_crop_to_fill_video


@dataclass(frozen=True)
class ClipSample:
    """x float32 [3, T, H, W] in [-1, 1], zeros where the clip failed; noise by ``AutoencoderConfig.noise_shapes``."""

    x: np.ndarray
    noise: tuple[np.ndarray, ...]
    step: int
    failure: Failure | None


@dataclass(frozen=True)
class ClipBatch:
    """B samples of one shape: x [B, 3, T, H, W], noise [B, C, t, h, w] each; weights float32 [B], 0 for failed ones."""

    x: np.ndarray
    noise: tuple[np.ndarray, ...]
    weights: np.ndarray
    step: int
    failures: tuple[Failure, ...]


class ClipBuilder:
    """Builds samples of clips. Safe for several threads."""

    def __init__(self, config: TrainVaeConfig, clips: Sequence[Clip]) -> None:
        self._config, self._clips = config, clips
        self._frames = Frames(config.data.cache)

    def build(self, sample: Sample, shape: Shape, step: int, slot: int) -> ClipSample:
        """The sample in ``slot`` of the global batch of ``step`` (from 0)."""
        config = self._config
        pixels, failure = self._pixels(self._clips[sample.clip], sample, shape)
        size = (shape.frames, shape.height, shape.width)
        noise = rng.stream(config.seed, "posterior noise", step, slot)
        return ClipSample(
            x=np.zeros((3, *size), np.float32) if pixels is None else pixels,
            noise=tuple(noise.standard_normal(part, np.float32) for part in config.autoencoder.noise_shapes(size)),
            step=step,
            failure=failure,
        )

    def _pixels(self, clip: Clip, sample: Sample, shape: Shape) -> tuple[np.ndarray | None, Failure | None]:
        data, seed, key = self._config.data, self._config.seed, (sample.epoch, sample.place)
        draw = rng.stream(seed, "window", *key).random()
        # Fewer frames than usual are the first of the usual window, as upstream cuts them.
        usual = max(data.num_frames, shape.frames)
        wanted = frame_numbers(clip.header.frames, usual, data.frame_interval, draw)[: shape.frames]
        image = clip.path.suffix.lower() in IMAGE_SUFFIXES
        try:
            if data.random_crop:
                top, left = rng.stream(seed, "crop", *key).random(2)
                pixels = _cropped(clip, wanted, shape, (float(top), float(left)), image)
            else:
                pixels = self._frames.get(clip.path, wanted, shape, image)
        except DecodeError as error:
            return None, Failure(clip, str(error))
        if data.flip and rng.stream(seed, "flip", *key).random() < 0.5:
            pixels = np.ascontiguousarray(pixels[..., ::-1])
        return pixels, None

    def stack(self, built: Sequence[ClipSample], shape: Shape) -> ClipBatch:
        """B samples of one shape as a batch."""
        return ClipBatch(
            x=np.stack([sample.x for sample in built]),
            noise=tuple(np.stack(parts) for parts in zip(*(sample.noise for sample in built), strict=True)),
            weights=np.array([sample.failure is None for sample in built], np.float32),
            step=built[0].step,
            failures=tuple(sample.failure for sample in built if sample.failure is not None),
        )


class MixedOrder:
    """An order whose steps differ in their number of frames, as ``mixed_strategy`` says: the same on every rank."""

    def __init__(self, order: Order, config: TrainVaeConfig) -> None:
        self._order, self._config = order, config

    def batch(self, step: int) -> GlobalBatch:
        """The global batch of ``step``, counted from 0."""
        batch = self._order.batch(step)
        return replace(batch, shape=replace(batch.shape, frames=self._frames(step, batch.shape.frames)))

    def position(self, step: int) -> dict[str, int]:
        """Epoch and place of the first sample that the steps before ``step`` have not seen."""
        return self._order.position(step)

    def steps_in(self, epochs: int) -> int | None:
        """Steps until every clip was seen ``epochs`` times."""
        return self._order.steps_in(epochs)

    def _frames(self, step: int, frames: int) -> int:
        config = self._config
        random = rng.stream(config.seed, "mixed strategy", step)
        if config.mixed_strategy == "image_only":
            return 1
        if config.mixed_strategy == "mixed_video_image":
            return 1 if random.random() < config.mixed_image_ratio else frames
        return int(random.integers(1, frames + 1)) if config.mixed_strategy == "mixed_video_random" else frames


def _cropped(clip: Clip, wanted: np.ndarray, shape: Shape, place: Place, image: bool) -> np.ndarray:
    """float32 [3, T, h, w]: the window at ``place`` of the scaled frames."""
    unique, back = np.unique(wanted, return_inverse=True)
    frames, size = read_frames(clip.path, unique), (shape.height, shape.width)
    if image:
        pixels = resize_crop_to_fill_image(frames[0], size, place)[None]
    else:
        pixels = resize_crop_to_fill_video(frames, size, place)
    return np.ascontiguousarray(pixels[back].transpose(1, 0, 2, 3))

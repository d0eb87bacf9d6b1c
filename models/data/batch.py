"""Samples and batches: everything a training step needs of them, noise and other draws included, as numpy arrays.

Every draw is keyed by (seed, purpose, step, slot in the global batch), so that a sample is the same whichever rank and
micro step it falls to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from models import rng
from models.config import TrainConfig
from models.data.bucket import Shape
from models.data.catalogue import Clip
from models.data.decode import IMAGE_SUFFIXES, DecodeError
from models.data.frames import Frames, frame_numbers
from models.data.masks import draw_mask
from models.data.order import Sample
from models.text.embeddings import read_embedding

# Frames a second that stand for an image. Upstream: opensora/datasets/datasets.py, IMG_FPS.
IMAGE_FPS = 120.0

# A draw of the schedule's kind, frames, height, width -> timestep.
Timestep = Callable[[np.random.Generator, Shape], float]


@dataclass(frozen=True)
class Failure:
    """A clip whose frames could not be had in the middle of training."""

    clip: Clip
    reason: str


@dataclass(frozen=True)
class Built:
    """One sample: x and noise float32 [C, T, H, W], y [L, D], mask [L], x_mask bool [T]; failed samples hold zeros."""

    x: np.ndarray
    noise: np.ndarray
    t: float
    y: np.ndarray
    mask: np.ndarray
    x_mask: np.ndarray
    fps: float
    drop: bool
    failure: Failure | None


@dataclass(frozen=True)
class MicroBatch:
    """B samples of one shape.

    x, noise float32 [B, C, T, H, W]; t, fps, height, width float32 [B]; y float32 [B, 1, L, D]; mask int32 [B, L];
    x_mask bool [B, T] or None; drop_ids int32 [B]; weights float32 [B], 0 for failed samples.
    """

    x: np.ndarray
    t: np.ndarray
    noise: np.ndarray
    y: np.ndarray
    mask: np.ndarray
    x_mask: np.ndarray | None
    fps: np.ndarray
    height: np.ndarray
    width: np.ndarray
    drop_ids: np.ndarray
    weights: np.ndarray
    failures: tuple[Failure, ...]


class SampleBuilder:
    """Builds samples of pixels (autoencoder ``identity``). Safe for several threads."""

    def __init__(self, config: TrainConfig, clips: Sequence[Clip], timestep: Timestep) -> None:
        self._config, self._clips, self._timestep = config, clips, timestep
        self._frames = Frames(config.data.cache)

    def build(self, sample: Sample, shape: Shape, step: int, slot: int) -> Built:
        """The sample in ``slot`` of the global batch of ``step`` (from 0). PayloadError for a bad embedding."""
        config, seed = self._config, self._config.seed
        clip = self._clips[sample.clip]
        size = (config.model.in_channels, shape.frames, shape.height, shape.width)
        pixels, failure = self._pixels(clip, sample, shape)
        text, mask = read_embedding(clip.embedding, config.model.model_max_length, config.model.caption_channels)
        drop = rng.stream(seed, "caption drop", step, slot).random() < config.model.class_dropout_prob
        fps = IMAGE_FPS if shape.frames == 1 else clip.header.fps / config.data.frame_interval
        return Built(
            x=np.zeros(size, np.float32) if pixels is None else pixels,
            noise=rng.stream(seed, "noise", step, slot).standard_normal(size, np.float32),
            t=self._timestep(rng.stream(seed, "timestep", step, slot), shape),
            y=text,
            mask=mask,
            x_mask=draw_mask(config.mask_ratios, shape.frames, rng.stream(seed, "frame mask", step, slot)),
            fps=fps,
            drop=bool(drop),
            failure=failure,
        )

    def _pixels(self, clip: Clip, sample: Sample, shape: Shape) -> tuple[np.ndarray | None, Failure | None]:
        draw = rng.stream(self._config.seed, "window", sample.epoch, sample.place).random()
        wanted = frame_numbers(clip.header.frames, shape.frames, self._config.data.frame_interval, draw)
        image = clip.path.suffix.lower() in IMAGE_SUFFIXES
        try:
            return self._frames.get(clip.path, wanted, shape, image), None
        except DecodeError as error:
            return None, Failure(clip, str(error))

    def stack(self, built: Sequence[Built], shape: Shape) -> MicroBatch:
        """B samples of one shape as a batch."""
        count = len(built)
        masks = np.stack([sample.x_mask for sample in built])
        return MicroBatch(
            x=np.stack([sample.x for sample in built]),
            t=np.array([sample.t for sample in built], np.float32),
            noise=np.stack([sample.noise for sample in built]),
            y=np.stack([sample.y for sample in built])[:, None],
            mask=np.stack([sample.mask for sample in built]),
            x_mask=masks if self._config.mask_ratios else None,
            fps=np.array([sample.fps for sample in built], np.float32),
            height=np.full(count, shape.height, np.float32),
            width=np.full(count, shape.width, np.float32),
            drop_ids=np.array([sample.drop for sample in built], np.int32),
            weights=np.array([sample.failure is None for sample in built], np.float32),
            failures=tuple(sample.failure for sample in built if sample.failure is not None),
        )

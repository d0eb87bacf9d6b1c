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
from models.data.latents import LatentReader
from models.data.masks import draw_mask
from models.data.order import Sample
from models.text.embeddings import read_embedding
from models.text.online import Texts

# Frames a second that stand for an image. Upstream: opensora/datasets/datasets.py, IMG_FPS.
IMAGE_FPS = 120.0

# What the noise is for that draws latents from the autoencoder's distribution.
POSTERIOR = "posterior noise"

# A draw of the schedule's kind, frames, height, width -> timestep.
Timestep = Callable[[np.random.Generator, Shape], float]


@dataclass(frozen=True)
class Failure:
    """A clip whose frames could not be had in the middle of training."""

    clip: Clip
    reason: str


@dataclass(frozen=True)
class Built:
    """One sample: x float32, pixels [3, T, H, W] or cached latents [C, t, h, w]; noise float32 [C, t, h, w] and x_mask
    bool [t] of its latents; y [L, D], mask [L]; place: step and slot, which name its draws; caption: where it is not
    embedded yet. Failed samples hold zeros."""

    x: np.ndarray
    noise: np.ndarray
    t: float
    y: np.ndarray
    mask: np.ndarray
    x_mask: np.ndarray
    fps: float
    drop: bool
    failure: Failure | None
    place: tuple[int, int]
    caption: str = ""


@dataclass(frozen=True)
class MicroBatch:
    """B samples of one shape.

    x float32 [B, C, T, H, W]; noise float32, and x_mask bool [B, T] or None, of the latents' size; t, fps, height,
    width, num_frames (of pixels) float32 [B]; y float32 [B, 1, L, D]; mask int32 [B, L]; drop_ids int32 [B]; weights
    float32 [B], 0 for failed samples. places: step and slot in the global batch of each sample, which name its draws.
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
    num_frames: np.ndarray
    drop_ids: np.ndarray
    weights: np.ndarray
    failures: tuple[Failure, ...]
    places: tuple[tuple[int, int], ...] = ()

    @property
    def ar(self) -> np.ndarray:
        """Height / width, float32 [B]."""
        return self.height / self.width


def latent_shape(config: TrainConfig, shape: Shape) -> tuple[int, int, int, int]:
    """(channels, frames, height, width) of the latents of samples of ``shape`` pixels."""
    frames, height, width = config.autoencoder.latent_size((shape.frames, shape.height, shape.width))
    assert frames is not None
    assert height is not None
    assert width is not None
    return config.model.in_channels, frames, height, width


class SampleBuilder:
    """Builds samples of pixels. Safe for several threads."""

    def __init__(
        self, config: TrainConfig, clips: Sequence[Clip], timestep: Timestep, texts: Texts | None = None
    ) -> None:
        """texts: who embeds the captions of clips without an embedding, when batches are stacked."""
        self._config, self._clips, self._timestep, self._texts = config, clips, timestep, texts
        self._frames = Frames(config.data.cache)
        self._latents = LatentReader(config.autoencoder, config.data.frame_interval) if config.data.latents else None

    def build(self, sample: Sample, shape: Shape, step: int, slot: int) -> Built:
        """The sample in ``slot`` of the global batch of ``step`` (from 0). PayloadError for a bad embedding."""
        config, seed = self._config, self._config.seed
        clip = self._clips[sample.clip]
        size = (3, shape.frames, shape.height, shape.width)
        latents = latent_shape(config, shape)
        if self._latents is not None:
            size = latents
        content, failure = self._content(clip, sample, shape, (step, slot))
        text, mask = self._text(clip)
        drop = rng.stream(seed, "caption drop", step, slot).random() < config.model.class_dropout_prob
        fps = IMAGE_FPS if shape.frames == 1 else clip.header.fps / config.data.frame_interval
        return Built(
            x=np.zeros(size, np.float32) if content is None else content,
            noise=rng.stream(seed, "noise", step, slot).standard_normal(latents, np.float32),
            t=self._timestep(rng.stream(seed, "timestep", step, slot), shape),
            y=text,
            mask=mask,
            x_mask=draw_mask(config.mask_ratios, latents[1], rng.stream(seed, "frame mask", step, slot)),
            fps=fps,
            drop=bool(drop),
            failure=failure,
            place=(step, slot),
            caption=clip.caption,
        )

    def _text(self, clip: Clip) -> tuple[np.ndarray, np.ndarray]:
        """(y [L, D], mask [L]) of a clip; zeros where its caption is embedded later."""
        length, channels = self._config.model.model_max_length, self._config.model.caption_channels
        if clip.embedding is None:
            return np.zeros((length, channels), np.float32), np.zeros(length, np.int32)
        return read_embedding(clip.embedding, length, channels)

    def _content(
        self, clip: Clip, sample: Sample, shape: Shape, place: tuple[int, int]
    ) -> tuple[np.ndarray | None, Failure | None]:
        """Pixels, or cached latents, of a sample; or why there are none."""
        draw = rng.stream(self._config.seed, "window", sample.epoch, sample.place).random()
        image = clip.path.suffix.lower() in IMAGE_SUFFIXES
        try:
            if self._latents is not None:
                noise = rng.stream(self._config.seed, POSTERIOR, *place)
                return self._latents.read(clip.latents, shape, self._config.model.in_channels, draw, noise), None
            wanted = frame_numbers(clip.header.frames, shape.frames, self._config.data.frame_interval, draw)
            return self._frames.get(clip.path, wanted, shape, image), None
        except DecodeError as error:
            return None, Failure(clip, str(error))

    def stack(self, built: Sequence[Built], shape: Shape) -> MicroBatch:
        """B samples of one shape as a batch."""
        count = len(built)
        masks = np.stack([sample.x_mask for sample in built])
        text, text_mask = np.stack([sample.y for sample in built]), np.stack([sample.mask for sample in built])
        if self._texts is not None:
            text, text_mask = self._texts.get([sample.caption for sample in built])
        return MicroBatch(
            x=np.stack([sample.x for sample in built]),
            t=np.array([sample.t for sample in built], np.float32),
            noise=np.stack([sample.noise for sample in built]),
            y=text[:, None],
            mask=text_mask,
            x_mask=masks if self._config.mask_ratios else None,
            fps=np.array([sample.fps for sample in built], np.float32),
            height=np.full(count, shape.height, np.float32),
            width=np.full(count, shape.width, np.float32),
            num_frames=np.full(count, shape.frames, np.float32),
            drop_ids=np.array([sample.drop for sample in built], np.int32),
            weights=np.array([sample.failure is None for sample in built], np.float32),
            failures=tuple(sample.failure for sample in built if sample.failure is not None),
            places=tuple(sample.place for sample in built),
        )

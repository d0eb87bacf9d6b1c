"""What ``python -m models.cache_latents`` is told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from models.config.autoencoder import AutoencoderConfig
from models.config.base import Positive
from models.config.running import TaskConfig

Transform = Literal["center", "crop_resize", "resize_by_max_value"]


class CacheLatentsConfig(TaskConfig):
    """Clips become npz files with ``latent_mean``, ``latent_std`` (float32 [T, C, h, w]), ``fps`` and ``ori_size``.

    image_sizes: (height, width) in pixels. One: files are ``<out>/<video path without suffix>.npz``. Several: a folder
    ``latent_<height>x<width>`` for each below ``out``.
    transform: how frames come to that size. crop_resize: the largest middle part of that aspect ratio, resized (what
    training does to pixels). center: the short side resized to the height, the middle cut out. resize_by_max_value:
    no size is given, but ``max_image_size``: frames keep their aspect ratio and are resized so that height x width is
    at most max_image_size squared, both multiples of ``multiple`` (FiT).
    frame_stride: every n-th frame. num_frames: the first so many of those; null: all.
    chunk_frames: frames that are decoded and encoded at once; null: a whole clip.
    save_distribution: also latent_std; without it training draws no posterior sample.
    """

    autoencoder: AutoencoderConfig = AutoencoderConfig()
    annotations: str = ""
    videos: str = ""
    out: str = ""
    video_column: str = "video"
    image_sizes: tuple[tuple[Positive, Positive], ...] = ()
    transform: Transform = "crop_resize"
    max_image_size: Positive | None = None
    multiple: Positive = 16
    frame_stride: Positive = 1
    num_frames: Positive | None = None
    chunk_frames: Positive | None = 64
    save_distribution: bool = True
    overwrite: bool = False
    workers: Annotated[int, Field(ge=1, le=64)] = 2

    @model_validator(mode="after")
    def _sizes(self) -> CacheLatentsConfig:
        fit = self.transform == "resize_by_max_value"
        if fit and (self.image_sizes or self.max_image_size is None):
            raise ValueError("resize_by_max_value takes max_image_size and no image_sizes")
        if not fit and (not self.image_sizes or self.max_image_size is not None):
            raise ValueError(f"{self.transform} takes image_sizes, [[height, width], …], and no max_image_size")
        if len(set(self.image_sizes)) != len(self.image_sizes):
            raise ValueError("image_sizes names a size twice")
        chunk = self.autoencoder.chunk
        if chunk and self.chunk_frames and self.chunk_frames < chunk:
            raise ValueError(f"chunk_frames must be at least the autoencoder's micro_frame_size, {chunk}")
        return self

"""What training is checked with on the way."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from models.config.base import Positive, Section
from models.config.data import BucketConfig, DataConfig


class ValidationConfig(Section):
    """The loss on clips that are not trained on, with the moving averages where training keeps them.

    every: steps between validations; one more at the end. num_timesteps: evenly spaced times at which every clip is
    noised. max_clips: the first so many of the annotations. What is not said of the data is as in training; a size
    said in one way takes the place of training's size said in any. No frames are masked, no captions dropped.
    """

    every: Positive = 500
    num_timesteps: Positive = 10
    batch_size: Positive = 1
    max_clips: Positive | None = None
    annotations: str = ""
    videos: str = ""
    text_embeddings: str = ""
    latents: str = ""
    image_size: tuple[Positive, Positive] | None = None
    resolution: str | None = None
    aspect_ratio: str | None = None
    num_frames: Positive | None = None
    frame_interval: Positive | None = None
    bucket_config: BucketConfig | None = None

    @model_validator(mode="after")
    def _one_size(self) -> ValidationConfig:
        ways = {
            "image_size": self.image_size is not None,
            "resolution": self.resolution is not None or self.aspect_ratio is not None,
            "bucket_config": self.bucket_config is not None,
        }
        given = [name for name, is_given in ways.items() if is_given]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} both say the size of clips; keep one")
        if (self.resolution is None) != (self.aspect_ratio is None):
            raise ValueError("resolution and aspect_ratio say the size together; give both")
        return self

    def data(self, training: DataConfig) -> DataConfig:
        """Training's data with what is said here in its place."""
        told: dict[str, Any] = {}
        if self.image_size or self.resolution or self.bucket_config is not None:
            sizes = ("image_size", "resolution", "aspect_ratio", "bucket_config")
            told = {key: getattr(self, key) for key in sizes} | {"max_image_size": None}
        for key in ("annotations", "videos", "text_embeddings", "latents", "num_frames", "frame_interval"):
            if getattr(self, key):
                told[key] = getattr(self, key)
        return training.model_copy(update=told)

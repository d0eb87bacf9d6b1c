"""Clips, captions, sizes and buckets."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from models.config.base import Positive, Probability, Section
from models.units import Size

# frames -> [keep probability, batch size] or [[keep probability, probability of this length], batch size]
Bucket = tuple[Probability | tuple[Probability, Probability], Annotated[int, Field(ge=0)] | None]
BucketConfig = dict[str, dict[Positive, Bucket]]


class DataConfig(Section):
    """Clips and captions. Paths are the nodes'; relative ones start at the run directory.

    annotations: CSV with a header holding ``video_column`` and ``caption_column``.
    text_embeddings: folder of ``<video path without suffix>.npz`` (or ``<video path>.npz``) with ``text_emb``
        float32 [L, caption_channels] and ``mask`` uint8 [L].
    latents: folder of cached latents in place of videos (models/data/latents.py): ``<video path without suffix>.npz``,
        or folders ``latent_<height>x<width>`` of those, of which each use of a clip takes one by lot. Sizes are those
        of the latents unless one is set; buckets decide on frames and batch sizes alone.
    max_image_size: clips keep their aspect ratio; height x width is at most its square, and sides are multiples of what
        a token covers.
    image_size: fixed (height, width) in pixels; or ``resolution`` with ``aspect_ratio``; or ``bucket_config``.
    num_frames, frame_interval: with a fixed size; frames drawn every ``frame_interval`` frames from a random start.
    workers, prefetch: threads that decode, steps they run ahead. cache: bytes of resized frames a worker keeps.
    """

    annotations: str = ""
    videos: str = ""
    text_embeddings: str = ""
    latents: str = ""
    video_column: str = "video"
    caption_column: str = "caption"
    image_size: tuple[Positive, Positive] | None = None
    resolution: str | None = None
    aspect_ratio: str | None = None
    max_image_size: Positive | None = None
    num_frames: Positive = 16
    frame_interval: Positive = 1
    bucket_config: BucketConfig | None = None
    workers: Annotated[int, Field(ge=0, le=64)] = 2
    prefetch: Positive = 2
    cache: Size = 256 << 20

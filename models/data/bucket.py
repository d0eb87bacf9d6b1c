"""Which bucket (resolution, frames, aspect ratio) a clip trains in. Upstream: opensora/datasets/bucket.py (v1.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from models.config import BucketConfig
from models.data import aspect

# Number of a (resolution, frames) pair in trial order -> the generator its draws come from.
Draws = Callable[[int], np.random.Generator]


@dataclass(frozen=True)
class Shape:
    """What a sample is cut to: frames, height and width in pixels."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


@dataclass(frozen=True)
class Choice:
    """A bucket: its name ``resolution/frames/ratio``, its shape, its batch size per rank."""

    name: str
    shape: Shape
    batch_size: int


@dataclass(frozen=True)
class _Entry:
    number: int
    frames: int
    keep: float
    length_probability: float | None
    batch_size: int


class Buckets:
    """The bucket rule over a ``bucket_config``. Raises KeyError for an unknown resolution."""

    def __init__(self, config: BucketConfig) -> None:
        # Most pixels first; sorted() is stable, so resolutions of one size keep the order of the configuration.
        order = sorted(config, key=aspect.num_pixels, reverse=True)
        self.entries: dict[str, list[_Entry]] = {}
        number = 0
        for resolution in order:
            entries = []
            for frames in sorted(config[resolution], reverse=True):
                keep, batch_size = config[resolution][frames]
                length = None
                if isinstance(keep, tuple):
                    keep, length = keep
                entries.append(_Entry(number, frames, float(keep), length, batch_size or 0))
                number += 1
            self.entries[resolution] = entries
        self.count = sum(len(entries) * len(aspect.sizes(name)) for name, entries in self.entries.items())

    def choose(self, frames: int, height: int, width: int, interval: int, draws: Draws) -> Choice | None:
        """The bucket of a clip (frames, height, width in pixels), or None when it is dropped.

        Resolutions are tried from most to fewest pixels; one is eligible when the clip has at least 0.8 of its
        pixels. Images (one frame) take the 1-frame bucket with its keep probability. Clips take the longest bucket
        with fewer frames than they have (counted every ``interval`` frames); a length with a probability of its own is
        skipped with its complement; the bucket found is kept with its keep probability, else the next resolution is
        tried.
        """
        for resolution, entries in self.entries.items():
            if height * width < 0.8 * aspect.num_pixels(resolution):
                continue
            entry = _image(entries, draws) if frames == 1 else _video(entries, frames, interval, draws)
            if entry is not None:
                ratio = aspect.closest_ratio(height, width, resolution)
                shape = Shape(entry.frames, *aspect.sizes(resolution)[ratio])
                return Choice(f"{resolution}/{entry.frames}/{ratio}", shape, entry.batch_size)
        return None

    def can_take(self, frames: int, height: int, width: int, interval: int) -> bool:
        """Whether any draw at all puts such a clip into a bucket."""
        for resolution, entries in self.entries.items():
            if height * width < 0.8 * aspect.num_pixels(resolution):
                continue
            if frames == 1:
                if any(entry.frames == 1 and entry.keep > 0 for entry in entries):
                    return True
                continue
            for entry in entries:
                if entry.frames == 1 or frames <= entry.frames * interval or entry.length_probability == 0:
                    continue
                if entry.keep > 0:
                    return True
                if entry.length_probability is None or entry.length_probability >= 1:
                    break
        return False


def _image(entries: list[_Entry], draws: Draws) -> _Entry | None:
    for entry in entries:
        if entry.frames == 1:
            return entry if _accept(entry, draws(entry.number)) else None
    return None


def _video(entries: list[_Entry], frames: int, interval: int, draws: Draws) -> _Entry | None:
    for entry in entries:
        if entry.frames == 1 or frames <= entry.frames * interval:
            continue
        draw = draws(entry.number)
        if entry.length_probability is not None and draw.random() > entry.length_probability:
            continue
        return entry if _accept(entry, draw) else None
    return None


def _accept(entry: _Entry, draw: np.random.Generator) -> bool:
    # A bucket that is always kept draws nothing, one that never is has no batch size.
    return entry.keep > 0 and (entry.keep >= 1 or bool(draw.random() < entry.keep))

"""Which bucket (resolution, frames, aspect ratio) a clip trains in, and what the buckets hold.

Upstream: opensora/datasets/bucket.py and sampler.py. v1.1 has the same rule as v1.2, without probabilities of lengths:
a configuration that names none gives the decisions of both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

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


@dataclass
class BucketStatistics:
    """[samples, full batches] by ``resolution/frames`` (most pixels and longest first) and by ratio (upright last)."""

    by_shape: dict[str, list[int]] = field(default_factory=dict)
    by_ratio: dict[str, list[int]] = field(default_factory=dict)
    samples: int = 0
    batches: int = 0
    dropped: int = 0
    buckets: int = 0


def bucket_statistics(choices: Sequence[Choice | None]) -> BucketStatistics:
    """What the buckets hold when every clip has made its ``choice``."""
    result = BucketStatistics(dropped=sum(choice is None for choice in choices))
    for choice, rows in _grouped(choices).items():
        resolution, frames, ratio = choice.name.split("/")
        batches = len(rows) // choice.batch_size if choice.batch_size else 0
        for table, key in ((result.by_shape, f"{resolution}/{frames}"), (result.by_ratio, ratio)):
            entry = table.setdefault(key, [0, 0])
            entry[0] += len(rows)
            entry[1] += batches
        result.samples += len(rows)
        result.batches += batches
        result.buckets += 1

    def size(item: tuple[str, list[int]]) -> tuple[int, int]:
        resolution, frames = item[0].split("/")
        return aspect.num_pixels(resolution), int(frames)

    result.by_shape = dict(sorted(result.by_shape.items(), key=size, reverse=True))
    result.by_ratio = dict(sorted(result.by_ratio.items()))
    return result


def sampler_batches(
    choices: Sequence[Choice | None], rank: int, world: int, drop_last: bool, first_step: int = 0
) -> list[tuple[Shape, list[int]]]:
    """Shape and row numbers of every batch ``rank`` of ``world`` gets in an epoch of upstream's sampler, unshuffled.

    Buckets come in order of first appearance. The rows that do not fill a bucket's last batch are dropped
    (``drop_last``) or filled up with the bucket's own first rows, and so is the last round of ranks with the first
    batches. Two oddities are kept: a bucket with fewer than half a batch has too few rows to fill one up and is lost,
    and a batch repeated to fill the last round holds what is left of its bucket, which may be nothing.
    Training here takes its own order (:mod:`models.data.order`); this is for comparing a data set's use with upstream.
    """
    rows: dict[Choice, list[int]] = {}
    order: list[Choice] = []
    for choice, members in _grouped(choices).items():
        if not choice.batch_size:
            raise ValueError(f"bucket {choice.name} keeps clips but has no batch size")
        rest = len(members) % choice.batch_size
        if rest:
            members = members[:-rest] if drop_last else members + members[: choice.batch_size - rest]
        rows[choice] = members
        order += [choice] * (len(members) // choice.batch_size)
    rest = len(order) % world
    if rest:
        order = order[:-rest] if drop_last else order + order[: world - rest]
    taken = dict.fromkeys(rows, 0)
    batches = []
    for number, choice in enumerate(order[: len(order) // world * world]):
        start = taken[choice]
        taken[choice] += choice.batch_size
        if number % world == rank and number // world >= first_step:
            batches.append((choice.shape, rows[choice][start : taken[choice]]))
    return batches


def _grouped(choices: Sequence[Choice | None]) -> dict[Choice, list[int]]:
    """Row numbers by bucket, in order of first appearance."""
    groups: dict[Choice, list[int]] = {}
    for row, choice in enumerate(choices):
        if choice is not None:
            groups.setdefault(choice, []).append(row)
    return groups

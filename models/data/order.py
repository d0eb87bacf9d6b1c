"""Which clips a step trains on. A function of (seed, step, global batch) alone, whatever the number of ranks.

Epoch e visits all clips in a permutation of its own; the epochs, put end to end, are one endless stream. With one
shape, step s takes the next global batch off that stream, so batches may span epochs and none is ever short. With
buckets the stream is dealt into buckets and a step is the first bucket that fills; what is left in a bucket waits for
the next epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from models import rng
from models.data.bucket import Choice, Draws, Shape
from models.exits import BAD_DATA, PayloadError

# Epochs in which no clip at all was kept by a bucket before we say so.
_MAX_EMPTY_EPOCHS = 1000


@dataclass(frozen=True)
class Sample:
    """One use of a clip: its number, the epoch and its place in that epoch's permutation."""

    clip: int
    epoch: int
    place: int


@dataclass(frozen=True)
class GlobalBatch:
    """What all ranks and micro steps of one optimizer step train on together; slots count through ``samples``."""

    shape: Shape
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class ClipSize:
    """What the bucket rule needs to know of a clip."""

    frames: int
    height: int
    width: int


class Order(Protocol):
    def batch(self, step: int) -> GlobalBatch:
        """The global batch of ``step``, counted from 0."""

    def position(self, step: int) -> dict[str, int]:
        """Epoch and place of the first sample that the steps before ``step`` have not seen."""

    def steps_in(self, epochs: int) -> int | None:
        """Steps until every clip was seen ``epochs`` times; None where only dealing them out would tell."""


class Chooser(Protocol):
    """A rule on the size of a clip, such as :class:`models.data.bucket.Buckets`."""

    def choose(self, frames: int, height: int, width: int, interval: int, draws: Draws) -> Choice | None:
        """Shape and batch size of the clip; None to leave it out."""


Choose = Callable[[int, Draws], Choice | None]


def permutation(seed: int, epoch: int, clips: int) -> np.ndarray:
    return rng.stream(seed, "order", epoch).permutation(clips)


class FixedOrder:
    """Every step has the same shape and ``batch_size`` samples over all ranks and micro steps."""

    def __init__(self, seed: int, clips: int, shape: Shape, batch_size: int) -> None:
        self._seed, self._clips, self._shape, self._batch_size = seed, clips, shape, batch_size
        self._epochs: dict[int, np.ndarray] = {}

    def batch(self, step: int) -> GlobalBatch:
        start = step * self._batch_size
        samples = []
        for number in range(start, start + self._batch_size):
            epoch, place = divmod(number, self._clips)
            samples.append(Sample(int(self._permutation(epoch)[place]), epoch, place))
        return GlobalBatch(self._shape, tuple(samples))

    def position(self, step: int) -> dict[str, int]:
        epoch, place = divmod(step * self._batch_size, self._clips)
        return {"epoch": epoch, "index": place}

    def steps_in(self, epochs: int) -> int:
        return -(-epochs * self._clips // self._batch_size)

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            if len(self._epochs) > 8:
                self._epochs.clear()
            self._epochs[epoch] = permutation(self._seed, epoch, self._clips)
        return self._epochs[epoch]


class DealtOrder:
    """Shapes clip by clip: a clip is dealt to the shape that ``choose`` gives it, and a step is the first that fills.

    choose: number of a clip, and where its draws come from -> its shape and batch size, None to leave it out this time.
    A batch size counts per rank and micro step; ``replicas`` of them make a step.
    """

    def __init__(self, seed: int, clips: int, choose: Choose, replicas: int) -> None:
        self._seed, self._clips, self._choose, self._replicas = seed, clips, choose, replicas
        self._restart()

    def batch(self, step: int) -> GlobalBatch:
        if step in self._recent:
            return self._recent[step][0]
        if step < self._next:
            # Going back is rare (a resume reads forward only): deal the stream again.
            self._restart()
        while self._next <= step:
            self._recent[self._next] = next(self._stream)
            self._recent.pop(self._next - 64, None)
            self._next += 1
        return self._recent[step][0]

    def position(self, step: int) -> dict[str, int]:
        if step == 0:
            return {"epoch": 0, "index": 0}
        self.batch(step - 1)
        return dict(self._recent[step - 1][1])

    def steps_in(self, epochs: int) -> None:
        return None

    def _restart(self) -> None:
        self._stream = self._deal()
        self._next = 0
        self._recent: dict[int, tuple[GlobalBatch, dict[str, int]]] = {}

    def _deal(self) -> Iterator[tuple[GlobalBatch, dict[str, int]]]:
        filling: dict[str, list[Sample]] = {}
        epoch, empty = 0, 0
        while empty < _MAX_EMPTY_EPOCHS:
            kept = 0
            for place, clip in enumerate(permutation(self._seed, epoch, self._clips)):
                choice = self._choose(int(clip), bucket_draws(self._seed, epoch, int(clip)))
                if choice is None or choice.batch_size == 0:
                    continue
                kept += 1
                waiting = filling.setdefault(choice.name, [])
                waiting.append(Sample(int(clip), epoch, place))
                if len(waiting) == choice.batch_size * self._replicas:
                    del filling[choice.name]
                    yield GlobalBatch(choice.shape, tuple(waiting)), {"epoch": epoch, "index": place + 1}
            empty = 0 if kept else empty + 1
            epoch += 1
        raise PayloadError(
            BAD_DATA,
            f"no clip was kept by any bucket in {_MAX_EMPTY_EPOCHS} epochs",
            where="train.data.bucket_config",
            why="keep probabilities are too small for this many clips",
            next_step="raise the keep probabilities",
        )


def by_size(clips: Sequence[ClipSize], rule: Chooser, interval: int) -> Choose:
    """A rule on the size of clips, asked by their numbers."""
    return lambda clip, draws: rule.choose(clips[clip].frames, clips[clip].height, clips[clip].width, interval, draws)


def bucket_draws(seed: int, epoch: int, clip: int) -> Draws:
    """Where the draws for a clip's bucket come from in an epoch."""
    return lambda number: rng.stream(seed, "bucket", epoch, clip, number)


def slots(global_size: int, rank: int, ranks: int, micro_steps: int) -> list[range]:
    """Slots of the global batch that ``rank`` trains on, one range a micro step. Ranks hold contiguous parts."""
    size, rest = divmod(global_size, ranks * micro_steps)
    if rest:
        raise ValueError(f"a global batch of {global_size} is not a multiple of {ranks} ranks x {micro_steps}")
    start = rank * micro_steps * size
    return [range(start + micro * size, start + (micro + 1) * size) for micro in range(micro_steps)]

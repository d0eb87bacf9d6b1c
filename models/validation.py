"""Validation during training: the loss on other clips, by shape, at fixed times, with the moving averages.

As in the reference (mindone, examples/opensora_hpcai): the times are ``num_timesteps`` evenly spaced ones, no frames
are masked, and every shape of clips has a number of its own. Noise and windows depend on the seed and the clip alone,
so numbers of different steps, and of different layouts, compare.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from models.config import TrainConfig
from models.data.batch import MicroBatch, SampleBuilder
from models.data.bucket import Shape
from models.data.catalogue import Clip, build_catalogue
from models.data.choosing import chooser, common_shape, unfit_rule
from models.data.order import Sample, bucket_draws
from models.settings import fixed_shape
from models.step import TrainStep
from models.text.online import Texts

INDEX = "validation-clips.json"


@dataclass(frozen=True)
class Validated:
    """loss: mean over clips and times; by_shape: the same by shape; seconds it took."""

    loss: float
    by_shape: dict[str, float]
    clips: int
    seconds: float


class Validation:
    """The clips to validate on, and the loss on them."""

    def __init__(self, config: TrainConfig, train: TrainStep, run_dir: Path, texts: Texts | None) -> None:
        """PayloadError: as for the data of training."""
        assert config.validation is not None
        self._settings, self._train = config.validation, train
        self._config = config.model_copy(
            update={"data": config.validation.data(config.data), "mask_ratios": None, "batch_size": 1}
        )
        shape = fixed_shape(self._config.data)
        clips = self._clips(run_dir, shape, texts is not None)
        self._builder = SampleBuilder(self._config, clips, lambda random, shape: 0.0, texts)
        self._groups = self._by_shape(clips, shape or common_shape(self._config, clips))

    def _clips(self, run_dir: Path, shape: Shape | None, online: bool) -> Sequence[Clip]:
        catalogue = build_catalogue(
            self._config.data,
            run_dir,
            self._train.mesh.world,
            self._config.model.caption_channels,
            unfit_rule(self._config, shape),
            online=online,
            index=INDEX,
        )
        return catalogue.clips[: self._settings.max_clips]

    def _by_shape(self, clips: Sequence[Clip], shape: Shape | None) -> list[tuple[Shape, list[int]]]:
        """Numbers of the clips of every shape; clips that buckets leave out are left out."""
        choose = chooser(self._config, clips, shape)
        groups: dict[Shape, list[int]] = {}
        for number in range(len(clips)):
            choice = choose(number, bucket_draws(self._config.seed, 0, number))
            if choice is not None and choice.batch_size != 0:
                groups.setdefault(choice.shape, []).append(number)
        return sorted(groups.items(), key=lambda group: str(group[0]))

    @property
    def every(self) -> int:
        """Steps between validations."""
        return self._settings.every

    def run(self) -> Validated:
        """A collective call: every rank makes it, and gets the same numbers."""
        start = time.perf_counter()
        sums = np.zeros((len(self._groups), 2))
        with self._train.averages():
            for place, (shape, numbers) in enumerate(self._groups):
                for batch in self._batches(shape, numbers):
                    sums[place] += self._train.evaluate(batch)
        sums = self._train.mesh.world.sum(sums.astype(np.float32).reshape(-1)).reshape(sums.shape)
        means = {
            str(shape): float(one[0] / one[1]) for (shape, _), one in zip(self._groups, sums, strict=True) if one[1]
        }
        total = sums.sum(0)
        times = self._settings.num_timesteps
        loss = float(total[0] / total[1]) if total[1] else float("nan")
        return Validated(loss, means, round(total[1] / times), time.perf_counter() - start)

    def _batches(self, shape: Shape, numbers: Sequence[int]) -> Iterator[MicroBatch]:
        """This rank's batches of a shape, every one at every time. All ranks get equally many, some without weight:
        the layers of several ranks talk to one another."""
        size, ranks = self._settings.batch_size, self._train.mesh.dp
        whole = size * ranks
        for first in range(0, len(numbers), whole):
            mine = range(first + self._train.mesh.dp_rank * size, first + (self._train.mesh.dp_rank + 1) * size)
            built, counts = [], []
            for slot in mine:
                number = numbers[min(slot, len(numbers) - 1)]
                built.append(self._builder.build(Sample(number, 0, number), shape, 0, number))
                counts.append(slot < len(numbers))
            batch = self._builder.stack([replace(one, drop=False) for one in built], shape)
            weights = batch.weights * np.asarray(counts, np.float32)
            for t in self._times(shape):
                yield replace(batch, t=np.full(len(built), t, np.float32), weights=weights)

    def _times(self, shape: Shape) -> list[float]:
        """Evenly spaced over the process; its ends, all noise and none, left out."""
        steps, count = self._config.diffusion.num_timesteps, self._settings.num_timesteps
        return [float(round(steps * (place + 1) / (count + 1))) for place in range(count)]

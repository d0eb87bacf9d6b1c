"""Batches ahead of time: threads decode while the device computes; the order stays the one of the steps."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from models.data.bucket import Shape
from models.data.order import GlobalBatch, Order, Sample, slots


class Builder(Protocol):
    """What makes samples and batches, such as models.data.batch.SampleBuilder. Safe for several threads."""

    def build(self, sample: Sample, shape: Shape, step: int, slot: int) -> Any:
        """The sample in ``slot`` of the global batch of ``step`` (from 0)."""

    def stack(self, built: Sequence[Any], shape: Shape) -> Any:
        """A batch of samples; has ``weights`` (0 for failed samples) and ``failures``."""


@dataclass(frozen=True)
class StepData:
    """One rank's part of a step: its micro batches, the shape, samples over all ranks, seconds waited for them."""

    micro_batches: tuple[Any, ...]
    shape: Shape
    samples: int
    wait: float


class Loader:
    """Builds the samples of coming steps in ``workers`` threads (0: when asked for), ``prefetch`` steps ahead."""

    def __init__(
        self,
        order: Order,
        builder: Builder,
        *,
        rank: int,
        ranks: int,
        micro_steps: int,
        workers: int,
        prefetch: int,
        last_step: int,
    ) -> None:
        self._order, self._builder = order, builder
        self._rank, self._ranks, self._micro_steps = rank, ranks, micro_steps
        self._prefetch, self._last_step = prefetch, last_step
        self._pool = ThreadPoolExecutor(workers, "loader") if workers else None
        self._ahead: OrderedDict[int, list[list[Future[Any]]]] = OrderedDict()

    def get(self, step: int) -> StepData:
        """The data of ``step`` (from 0). Raises what building a sample raised, such as PayloadError."""
        start = time.perf_counter()
        batch = self._order.batch(step)
        if self._pool is None:
            parts = [[self._build(batch, step, slot) for slot in part] for part in self._slots(batch)]
        else:
            for coming in range(step, min(step + self._prefetch + 1, self._last_step)):
                if coming not in self._ahead:
                    # The order is asked by this thread alone; dealing into buckets has a state.
                    ahead = self._order.batch(coming)
                    self._ahead[coming] = [
                        [self._pool.submit(self._build, ahead, coming, slot) for slot in part]
                        for part in self._slots(ahead)
                    ]
            parts = [[future.result() for future in part] for part in self._ahead.pop(step)]
        batches = tuple(self._builder.stack(part, batch.shape) for part in parts)
        return StepData(batches, batch.shape, len(batch.samples), time.perf_counter() - start)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _slots(self, batch: GlobalBatch) -> list[range]:
        return slots(len(batch.samples), self._rank, self._ranks, self._micro_steps)

    def _build(self, batch: GlobalBatch, step: int, slot: int) -> Any:
        return self._builder.build(batch.samples[slot], batch.shape, step, slot)

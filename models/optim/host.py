"""AdamW and the moving average in host memory, for states that should not take room on the device."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from models.config import OptimizerConfig
from models.optim.adamw import factors

# Elements worked on at once: all operands of a chunk stay in the processor's cache.
_CHUNK = 1 << 16


class HostAdamW:
    """AdamW and EMA on flat float32 arrays, in place.

    Bit for bit the arithmetic of :func:`models.ops.common.adamw_update` (Ascend's) and ``lerp_update``. The CPU's own
    update is one kernel with fused multiply-adds and other constants (models/ops/cpu.py): there, switching offload on
    or off changes last bits.
    """

    def __init__(
        self, values: Sequence[np.ndarray], config: OptimizerConfig, decay: float | None, threads: int
    ) -> None:
        """values: flat arrays, updated in place; decay: of the moving average, None for none."""
        self.values, self.config, self.decay = list(values), config, decay
        self.exp_avg = [np.zeros_like(value) for value in values]
        self.exp_avg_sq = [np.zeros_like(value) for value in values]
        self.averages = [value.copy() for value in values] if decay is not None else None
        self.count = 0
        self._pool = ThreadPoolExecutor(threads)

    def step(self, grads: Sequence[np.ndarray], lr: float, factor: float) -> None:
        """One update with ``factor`` times the flat gradients."""
        self.count += 1
        hyper = [np.float32(value) for value in factors(self.config, self.count, lr)]
        work = [
            (number, start)
            for number, value in enumerate(self.values)
            for start in range(0, value.size, _CHUNK)
        ]  # fmt: skip
        list(self._pool.map(lambda item: self._chunk(*item, grads[item[0]], np.float32(factor), hyper), work))

    def _chunk(
        self, number: int, start: int, grad: np.ndarray, factor: np.float32, hyper: Sequence[np.float32]
    ) -> None:
        part = slice(start, start + _CHUNK)
        first, second = (np.float64(beta) for beta in self.config.betas)
        value, average, square = self.values[number][part], self.exp_avg[number][part], self.exp_avg_sq[number][part]
        scaled = grad[part] * factor
        average += (scaled - average) * np.float32(1.0 - first)
        square *= np.float32(second)
        square += (scaled * scaled) * np.float32(1.0 - second)
        update = average / (np.sqrt(square) / hyper[2] + np.float32(self.config.eps))
        value *= hyper[0]
        value -= update * hyper[1]
        if self.averages is not None and self.decay is not None:
            mean = self.averages[number][part]
            mean *= np.float32(self.decay)
            mean += value * np.float32(1.0 - self.decay)

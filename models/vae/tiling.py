"""Large frames coded tile by tile: tiles overlap, and where they do their results are blended linearly.

Each tile is coded as if it were the whole frame, so results differ from untiled ones where norms and attention see the
whole frame; far from where they differ the blending changes nothing. A frame no larger than a tile is coded whole, to
the same bits as without tiling. Upstream for the idea: diffusers, ``AutoencoderKL.tiled_encode``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor
from mindspore import ops as P

from models.config import TilingConfig

Code = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Tiles:
    """Tiles in units of latents: ``size`` of a side, of which ``overlap`` is shared with the next."""

    size: int
    overlap: int

    @classmethod
    def of(cls, config: TilingConfig, factor: int) -> Tiles:
        """Tiles of whole latents: ``factor`` pixels of a side are one. At least two latents, one of them shared."""
        size = max(2, config.size // factor)
        return cls(size, min(size - 1, max(1, round(size * config.overlap))))

    def starts(self, length: int) -> list[int]:
        """Where tiles of a side begin; the last one ends where the side ends, and overlaps more where it must."""
        if length <= self.size:
            return [0]
        step = self.size - self.overlap
        count = -(-(length - self.overlap) // step)
        return [min(number * step, length - self.size) for number in range(count)]

    def weights(self, start: int, length: int, pixels: int) -> np.ndarray:
        """float32: how much a tile counts along a side, for each of ``pixels`` results a latent.

        It rises and falls linearly over what is shared with a neighbour and is 1 elsewhere, frame edges included.
        """
        size = min(self.size, length) * pixels
        ramp = (np.arange(size, dtype=np.float32) + 0.5) / (self.overlap * pixels)
        values = np.ones(size, np.float32)
        if start > 0:
            values = np.minimum(values, ramp)
        if start + self.size < length:
            values = np.minimum(values, ramp[::-1])
        return values

    def code(self, code: Code, x: Tensor, down: int, up: int) -> Tensor:
        """``code(x)`` from tiles. x [..., H, W]; one latent is ``down`` of its pixels and ``up`` of the result's.

        code: [..., h, w] -> [..., h * up / down, w * up / down]. What is left of a side behind the last whole latent
        is cut where there are several tiles, as coding does itself.
        """
        height, width = x.shape[-2] // down, x.shape[-1] // down
        rows, columns = self.starts(height), self.starts(width)
        if len(rows) == len(columns) == 1:
            return code(x)
        lines = []
        for top in rows:
            tiles = [
                (left * up, code(_cut(x, top, left, self.size, down)), self.weights(left, width, up))
                for left in columns
            ]
            line = _placed(tiles, width * up).swapaxes(-1, -2)
            lines.append((top * up, line, self.weights(top, height, up)))
        return _placed(lines, height * up).swapaxes(-1, -2)


def _cut(x: Tensor, top: int, left: int, size: int, down: int) -> Tensor:
    bottom, right = min(x.shape[-2] // down, top + size), min(x.shape[-1] // down, left + size)
    return x[..., top * down : bottom * down, left * down : right * down]


def _placed(parts: list[tuple[int, Tensor, np.ndarray]], length: int) -> Tensor:
    """Parts (start along the last axis, values, weights) added up to ``length``, divided by the weights' sum."""
    total = np.zeros(length, np.float32)
    for start, _, weights in parts:
        total[start : start + weights.size] += weights
    padded = []
    for start, values, weights in parts:
        share = Tensor(weights / total[start : start + weights.size]).astype(values.dtype)
        padded.append(_widened(values * share, start, length))
    whole = padded[0]
    for values in padded[1:]:
        whole = whole + values
    return whole


def _widened(values: Tensor, start: int, length: int) -> Tensor:
    """Zeros before and behind along the last axis."""
    behind = length - start - values.shape[-1]
    parts = [P.zeros((*values.shape[:-1], before), values.dtype) for before in (start, behind)]
    kept = [part for part in (parts[0], values, parts[1]) if part.shape[-1]]
    return kept[0] if len(kept) == 1 else P.concat(kept, -1)

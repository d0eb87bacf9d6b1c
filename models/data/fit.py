"""Samples that keep their aspect ratio: every clip is resized by itself, as in FiT (Lu et al. 2024, arXiv:2402.12376).

Upstream: mindone's examples/opensora_hpcai, ``_ResizeByMaxValue`` (its ``pre_patchify`` training of STDiT2). There
samples of any size are padded to the largest number of tokens and the padding is masked; here a batch holds samples of
one size, so nothing is padded. A sample's loss is the same number: padding is hidden from attention and from the loss.
"""

from __future__ import annotations

import math

from models.data.bucket import Choice, Draws, Shape


def fit_size(height: int, width: int, max_size: int, multiple: int) -> tuple[int, int]:
    """(height, width) with at most ``max_size`` squared pixels, about the same aspect ratio, multiples of ``multiple``.

    Sides are rounded to the nearest multiple, both down where that is too much; small frames are not enlarged, but no
    side is shorter than ``multiple``.
    """
    limit = max_size * max_size
    shrink = math.sqrt(min(1.0, limit / (height * width)))
    sides = (height * shrink / multiple, width * shrink / multiple)
    rounded = [round(side) * multiple for side in sides]
    if rounded[0] * rounded[1] > limit:
        rounded = [math.floor(side) * multiple for side in sides]
    return max(rounded[0], multiple), max(rounded[1], multiple)


class FitShapes:
    """The size of every clip by :func:`fit_size`, all with the same frames and batch size."""

    def __init__(self, max_size: int, multiple: int, frames: int, batch_size: int) -> None:
        self._max_size, self._multiple, self._frames, self._batch_size = max_size, multiple, frames, batch_size

    def choose(self, frames: int, height: int, width: int, interval: int, draws: Draws) -> Choice | None:
        """The shape a clip trains in; None where it has too few frames. Nothing is drawn."""
        if frames < self._frames:
            return None
        shape = Shape(self._frames, *fit_size(height, width, self._max_size, self._multiple))
        return Choice(str(shape), shape, self._batch_size)

"""What a rank gives to a checkpoint: contiguous flat ranges of named tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# Parameters (float32 master values), their moving averages, AdamW's first and second moments.
KINDS = ("model", "ema", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Piece:
    """The flat range [start, stop) (C order) of one tensor. Over all ranks, pieces tile every tensor exactly once.

    kind: one of ``KINDS``. name: the parameter's PyTorch name. shape: of the whole tensor.
    values: gives float32 [stop - start]; called once, when the snapshot is taken. It may show device memory: it is
    copied before anything else happens.
    """

    kind: str
    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    values: Callable[[], np.ndarray]

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.name}"

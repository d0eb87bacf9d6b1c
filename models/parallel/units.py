"""Units: parameters whose gradients travel, and under ZeRO are sharded, together as one flat vector.

The vector of a unit is padded to a multiple of the number of ranks, so any shape can be sharded evenly. Layouts that
differ in ``zero`` only use the same units, hence the same sums in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor
from mindspore import ops as P


@dataclass(frozen=True)
class Range:
    """Flat elements [start, stop) of the parameter ``name``, at ``offset`` in the shard that holds them."""

    name: str
    start: int
    stop: int
    offset: int


class Unit:
    """Names, shapes and places of parameters in one flat vector over ``ranks`` shards."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], ranks: int) -> None:
        self.shapes, self.ranks = dict(shapes), ranks
        self.names = list(shapes)
        self.sizes = [int(np.prod(shape, dtype=np.int64)) for shape in shapes.values()]
        self.length = sum(self.sizes)
        self.width = -(-self.length // ranks)
        self.padded = self.width * ranks

    def flatten(self, tensors: Iterable[Tensor]) -> Tensor:
        """Tensors of all parameters in order -> [padded], in their dtype."""
        parts = [tensor.reshape(-1) for tensor in tensors]
        if self.padded > self.length:
            parts.append(P.zeros((self.padded - self.length,), parts[0].dtype))
        return P.concat(parts) if len(parts) > 1 else parts[0]

    def split(self, flat: Tensor) -> list[Tensor]:
        """The reverse of :meth:`flatten`."""
        spare = [self.padded - self.length] if self.padded > self.length else []
        parts = P.split(flat, self.sizes + spare, 0) if len(self.sizes) + len(spare) > 1 else [flat]
        return [part.reshape(shape) for part, shape in zip(parts, self.shapes.values(), strict=False)]

    def shard(self, flat: np.ndarray, rank: int) -> np.ndarray:
        """Rank ``rank``'s [width] of the unit's values [length], padded with zeros."""
        part = flat[rank * self.width : (rank + 1) * self.width]
        return np.concatenate([part, np.zeros(self.width - part.size, flat.dtype)])

    def ranges(self, rank: int) -> list[Range]:
        """What rank ``rank``'s shard holds, padding left out."""
        first, last = rank * self.width, (rank + 1) * self.width
        found, begin = [], 0
        for name, size in zip(self.names, self.sizes, strict=True):
            start, stop = max(first, begin), min(last, begin + size)
            if start < stop:
                found.append(Range(name, start - begin, stop - begin, start - first))
            begin += size
        return found


def make_units(
    shapes: dict[str, tuple[int, ...]], stages: Sequence[Sequence[str]], ranks: int, at_least: int
) -> list[Unit]:
    """Units of consecutive stages (prefixes of names, in the order of use) with at least ``at_least`` elements each.

    Large blocks are a unit each; small ones travel together, because every collective has a price of its own.
    """
    units: list[Unit] = []
    pending: dict[str, tuple[int, ...]] = {}
    left = dict(shapes)
    for prefixes in stages:
        taken = [name for name in left if name.startswith(tuple(prefixes))]
        pending |= {name: left.pop(name) for name in taken}
        if sum(int(np.prod(shape, dtype=np.int64)) for shape in pending.values()) >= at_least:
            units.append(Unit(pending, ranks))
            pending = {}
    if left:
        raise ValueError(f"parameters of no stage: {', '.join(sorted(left)[:5])}")
    if pending:
        units.append(Unit(pending, ranks))
    return units


def host(tensor: Tensor) -> np.ndarray:
    """A float32 copy in host memory."""
    return np.array(tensor.astype(ms.float32).asnumpy(), np.float32, copy=True)

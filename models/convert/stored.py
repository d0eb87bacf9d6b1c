"""Tensors as files hold them: read when needed, one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

# Names of types as in safetensors -> how numpy holds them; bfloat16 is held as its 16 bits.
TYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64, "I32": np.int32,
    "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")


class BadFile(Exception):
    """A file that does not hold what it should; the text says why."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file. ``dtype`` is a key of ``TYPES``; ``read`` gives its values in that type, of ``shape``."""

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * np.dtype(TYPES[self.dtype]).itemsize

    def reshaped(self, shape: tuple[int, ...]) -> Stored:
        read = self.read
        return replace(self, shape=shape, read=lambda: read().reshape(shape))

    def values(self) -> np.ndarray:
        """The values; of any kind of float, as float32."""
        array = self.read()
        if self.dtype == "BF16":
            return (array.astype(np.uint32) << 16).view(np.float32).reshape(self.shape)
        return array.astype(np.float32) if self.dtype in FLOATS else array


Weights = dict[str, Stored]


def of_array(array: np.ndarray) -> Stored:
    """An array in memory as if it came from a file."""
    code = next(name for name, kind in TYPES.items() if np.dtype(kind) == array.dtype and name != "BF16")
    return Stored(code, tuple(array.shape), lambda: array)

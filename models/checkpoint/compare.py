"""Two checkpoints, or safetensors files, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from models.checkpoint.convert import export_keys
from models.checkpoint.read import Reader
from models.checkpoint.tensors import read_header, read_range

_RANGE = 4 << 20


class Tensors(Protocol):
    """Tensors by ``kind/name``."""

    def shapes(self) -> Mapping[str, Sequence[int]]: ...

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        """Values [start, stop) of the flat tensor."""
        ...


class FileTensors:
    """A safetensors file; its tensors count as those of the kind ``model``. BadTensors, OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries = read_header(path)

    def shapes(self) -> Mapping[str, Sequence[int]]:
        return {f"model/{name}": tuple(entry["shape"]) for name, entry in self._entries.items()}

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        return read_range(self._path, self._entries[key.partition("/")[2]], start, stop)


class CheckpointTensors:
    """A checkpoint; with ``kind`` only that one, under the name ``model`` (averages go with a file's weights)."""

    def __init__(self, reader: Reader, kind: str | None = None) -> None:
        self._reader = reader
        if kind is None:
            self._keys = {key: key for key in reader.manifest.tensors}
        else:
            keys = export_keys(reader.manifest, ema=kind == "ema")
            self._keys = {f"model/{name}": key for name, key in keys.items()}

    def shapes(self) -> Mapping[str, Sequence[int]]:
        return {name: self._reader.manifest.tensors[key] for name, key in self._keys.items()}

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        return self._reader.read(self._keys[key], start, stop)


@dataclass(frozen=True)
class Difference:
    """What is different of a tensor. largest: the greatest absolute difference, NaN where only one is a number."""

    key: str
    what: str
    largest: float | None = None


def compare(
    left: Tensors,
    right: Tensors,
    kinds: Sequence[str] | None = None,
    progress: Callable[[int], None] = lambda size: None,
) -> Iterator[Difference]:
    """Differences in the order of names; only of ``kinds`` if given. Values are equal if both are NaN."""
    ours, theirs = _chosen(left, kinds), _chosen(right, kinds)
    for key in sorted(set(ours) | set(theirs)):
        if key not in theirs:
            yield Difference(key, "only in the first")
        elif key not in ours:
            yield Difference(key, "only in the second")
        elif tuple(ours[key]) != tuple(theirs[key]):
            yield Difference(key, f"shape {list(ours[key])} against {list(theirs[key])}")
        else:
            found = _largest(left, right, key, math.prod(ours[key]), progress)
            if found is not None:
                yield Difference(key, "values", found)


def _chosen(tensors: Tensors, kinds: Sequence[str] | None) -> dict[str, Sequence[int]]:
    return {key: shape for key, shape in tensors.shapes().items() if kinds is None or key.partition("/")[0] in kinds}


def _largest(left: Tensors, right: Tensors, key: str, size: int, progress: Callable[[int], None]) -> float | None:
    """The greatest absolute difference; None where all values are equal."""
    largest: float | None = None
    for start in range(0, size, _RANGE):
        stop = min(start + _RANGE, size)
        a, b = left.read(key, start, stop), right.read(key, start, stop)
        progress(4 * (stop - start))
        if a.tobytes() == b.tobytes() and a.dtype == b.dtype:
            continue
        a, b = a.astype(np.float64), b.astype(np.float64)
        different = ~((a == b) | (np.isnan(a) & np.isnan(b)))
        if different.any():
            with np.errstate(invalid="ignore"):
                here = np.abs(a[different] - b[different])
            part = float("nan") if np.isnan(here).any() else float(here.max())
            largest = part if largest is None or math.isnan(part) else max(largest, part)
            if math.isnan(largest):
                return largest
    return largest


def changed_facts(left: Any, right: Any, place: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, left, right) of facts that differ."""
    if isinstance(left, dict) and isinstance(right, dict):
        return [
            change
            for name in sorted(set(left) | set(right))
            for change in changed_facts(left.get(name), right.get(name), f"{place}.{name}".lstrip("."))
        ]
    return [] if left == right else [(place, left, right)]

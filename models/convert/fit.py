"""Fitting weights to a transformer: renaming, reshaping, and saying by name what fits and what does not.

Rules of upstream (opensora/utils/ckpt_utils.py, ``reparameter``) for starting from PixArt: its blocks become the
spatial ones, position tables are not taken but computed for the new size, the null caption is cut or its last row
repeated; what PixArt has not keeps its initial values, with which temporal attention adds nothing. Unlike upstream,
nothing else may be missing, left over or of another shape unless that is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from models.config import ModelConfig
from models.convert.names import kind_of, to_torch
from models.convert.stored import Stored, Weights

_TABLES = ("pos_embed", "pos_embed_temporal")
_NULL_CAPTION = "y_embedder.y_embedding"
_PATCHES = "x_embedder.proj.weight"
# What PixArt's weights have that not every transformer takes: micro-conditions of its multi-scale models.
_PIXART_ONLY = re.compile(r"^(?:csize_embedder|ar_embedder)\.|^pos_embed$")
# What no PixArt has.
_NOT_IN_PIXART = re.compile(
    r"^temporal_blocks\.|\.attn_temp\.|\.scale_shift_table_temporal$|^t_block_temp\.|^(?:fl|fps|csize|ar)_embedder\.|"
    r"\.[qk]_norm\.weight$|^rope\.freqs$"
)


@dataclass(frozen=True)
class Taken:
    """A parameter's values: of ``source`` in the file, as they are or changed in the way ``how`` tells."""

    source: str
    stored: Stored
    how: str = ""


@dataclass
class Fit:
    """How weights fit a model.

    taken: by the model's name. kept: names that stay as initialised, because they may. missing: names the weights
    should have had. unused: names in the file nothing takes. mismatched: (name, shape in the file, the model's).
    """

    kind: str
    taken: dict[str, Taken] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    def problems(self) -> list[str]:
        """One line for everything that is not as it should be."""
        lines = [f"missing: {name}" for name in self.missing]
        lines += [f"shape: {name} is {list(found)}, the model has {list(wanted)}" for name, found, wanted in
                  self.mismatched]  # fmt: skip
        return lines + [f"unexpected: {name}" for name in self.unused]

    def summary(self) -> list[str]:
        """What happened, for the log: counts, and names by their groups."""
        changed = [f"{name} ({taken.how})" for name, taken in self.taken.items() if taken.how]
        lines = [f"{len(self.taken)} parameters loaded"]
        for what, names in (
            ("changed to fit", changed), ("left as initialised", self.kept), ("missing, left as initialised",
            self.missing), ("of another shape, left as initialised", [name for name, _, _ in self.mismatched]),
            ("in the file, but not used", self.unused),
        ):  # fmt: skip
            if names:
                lines.append(f"{len(names)} {what}: {', '.join(grouped(names))}")
        return lines

    def values(self) -> Iterator[tuple[str, np.ndarray]]:
        """(name, float32 values) one by one, read as they are wanted."""
        for name, taken in self.taken.items():
            yield name, taken.stored.values()


def grouped(names: list[str]) -> list[str]:
    """Names with their numbers left out, each once, with how many it stands for."""
    counts: dict[str, int] = {}
    for name in names:
        group = re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
        counts[group] = counts.get(group, 0) + 1
    return [group if count == 1 else f"{group} ({count})" for group, count in counts.items()]


def fit(weights: Weights, shapes: Mapping[str, tuple[int, ...]], model: ModelConfig) -> Fit:
    """How ``weights`` fit a model with parameters of these ``shapes``."""
    named = unwrapped(weights)
    kind = kind_of(named) or ""
    if kind == "pixart" and model.type == "STDiT3":
        named = {re.sub(r"^blocks\.", "spatial_blocks.", name): value for name, value in named.items()}
    result = Fit(kind)
    for name, shape in shapes.items():
        source, stored = named.pop(name, ("", None))
        if name in _TABLES or (stored is None and name == "rope.freqs"):
            result.kept.append(name)
        elif stored is None:
            optional = kind == "pixart" and _NOT_IN_PIXART.search(name)
            (result.kept if optional else result.missing).append(name)
        else:
            _take(result, name, shape, source, stored)
    for name, (source, _) in named.items():
        if name not in _TABLES and not (kind == "pixart" and _PIXART_ONLY.search(name)):
            result.unused.append(source)
    return result


def unwrapped(weights: Weights) -> dict[str, tuple[str, Stored]]:
    """PyTorch name -> (name in the file, tensor), without what data parallelism puts before every name."""
    names = {name: to_torch(name) for name in weights}
    if all(name.startswith("module.") for name in names.values()):
        names = {old: new.removeprefix("module.") for old, new in names.items()}
    return {new: (old, weights[old]) for old, new in names.items()}


def _take(result: Fit, name: str, shape: tuple[int, ...], source: str, stored: Stored) -> None:
    renamed = f"was {source}" if source != name else ""
    if stored.shape == shape:
        result.taken[name] = Taken(source, stored, renamed)
    elif name == _NULL_CAPTION and stored.shape[1:] == shape[1:] and stored.shape[0] > 0:
        how = "cut" if stored.shape[0] > shape[0] else "last row repeated"
        result.taken[name] = Taken(source, _resized(stored, shape), f"{how}: {stored.shape[0]} rows to {shape[0]}")
    elif name == _PATCHES and stored.size == np.prod(shape) and stored.shape[0] == shape[0] and shape[2] == 1:
        result.taken[name] = Taken(source, stored.reshaped(shape), f"{list(stored.shape)} as {list(shape)}")
    else:
        result.mismatched.append((name, stored.shape, shape))


def _resized(stored: Stored, shape: tuple[int, ...]) -> Stored:
    """The first rows, or all and the last again and again."""
    read: Callable[[], np.ndarray] = stored.read

    def resized() -> np.ndarray:
        rows = read()[: shape[0]]
        return np.concatenate([rows, np.repeat(rows[-1:], shape[0] - len(rows), 0)])

    return Stored(stored.dtype, shape, resized)

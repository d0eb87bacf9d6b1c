"""Frame masks: which latent frames of a sample are noised and learnt, which stay clean as a condition.

Upstream: opensora/utils/train_utils.py, ``MaskGenerator``. True = noised, False = condition. The names are those of
v1.2; v1.1 calls the same masks ``mask_quarter_head`` and so on, and ``identity`` is its ``mask_no``. Upstream spells
``interpolate`` without its r; both are understood.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np

_ALIASES = {"no": "identity", "intepolate": "interpolate"}
_V1_1 = "mask_"


class MaskDraws(Protocol):
    """Where the random numbers of a mask come from."""

    def integer(self, low: int, high: int) -> int:
        """An integer from ``low`` to ``high``, both included."""

    def ratio(self, low: float, high: float) -> float:
        """A number from ``low`` to ``high``."""

    def uniforms(self, count: int) -> np.ndarray:
        """float [count] in [0, 1)."""


class GeneratorDraws:
    """Draws of a numpy generator."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random

    def integer(self, low: int, high: int) -> int:
        return int(self._random.integers(low, high + 1))

    def ratio(self, low: float, high: float) -> float:
        return float(self._random.uniform(low, high))

    def uniforms(self, count: int) -> np.ndarray:
        return self._random.random(count)


def mask_name(name: str) -> str:
    """The name used here for a mask as v1.1 or v1.2 calls it."""
    name = name.removeprefix(_V1_1)
    return _ALIASES.get(name, name)


def mask_ratios(ratios: Mapping[str, float], complete: bool = False) -> dict[str, float]:
    """Probabilities of masks by the names used here, in the order given.

    complete: they must add up to 1 (the rule of v1.1); otherwise ``identity`` takes what is missing. ValueError for a
    probability outside 0 to 1 and for a sum that is too large, or is not 1 where it has to be.
    """
    for name, ratio in ratios.items():
        if not 0 <= ratio <= 1:
            raise ValueError(f"probability {ratio} of mask {name!r} is not between 0 and 1")
    total = sum(ratios.values())
    whole = complete or "identity" in ratios
    if (whole and not math.isclose(total, 1.0, abs_tol=1e-6)) or total > 1 + 1e-6:
        raise ValueError(f"probabilities of masks add up to {total:g}{', not 1' if whole else ', more than 1'}")
    return {mask_name(name): ratio for name, ratio in ratios.items()}


def choose_mask(ratios: Mapping[str, float], draw: float) -> str:
    """The mask a uniform ``draw`` in [0, 1) picks: cumulative in the order given; what is missing is ``identity``."""
    edge = 0.0
    for name, probability in ratios.items():
        edge += probability
        if draw < edge:
            return name
    return "identity"


def frame_mask(name: str, frames: int, random: np.random.Generator | MaskDraws) -> np.ndarray:
    """A mask bool [frames] of kind ``name``. ValueError where the kind does not exist for so few frames."""
    draws = GeneratorDraws(random) if isinstance(random, np.random.Generator) else random
    name = mask_name(name)
    mask = np.ones(frames, bool)
    if frames <= 1 or name == "identity":
        return mask
    if name == "random":
        uniforms = draws.uniforms(frames)
        return random_mask(uniforms, draws.ratio(0.1, 0.9))
    if name == "interpolate":
        mask[draws.integer(0, 1) :: 2] = False
        return mask
    kind, _, place = name.partition("_")
    if kind not in ("quarter", "image") or place not in ("random", "head", "tail", "head_tail"):
        raise ValueError(f"unknown mask {name!r}")
    if kind == "quarter" and frames < 4:
        raise ValueError(f"mask {name!r} needs at least 4 latent frames, not {frames}")
    size = 1 if kind == "image" else draws.integer(1, frames // 4)
    if place == "random":
        start = draws.integer(0, frames - size)
        mask[start : start + size] = False
    if place in ("head", "head_tail"):
        mask[:size] = False
    if place in ("tail", "head_tail"):
        mask[-size:] = False
    return mask


def random_mask(uniforms: np.ndarray, ratio: float) -> np.ndarray:
    """Frames whose number in ``uniforms`` [T] exceeds ``ratio`` are noised, at least the last: bool [T]."""
    mask = np.asarray(uniforms) > ratio
    mask[-1] |= not mask.any()
    return mask


def draw_mask(ratios: Mapping[str, float] | None, frames: int, random: np.random.Generator) -> np.ndarray:
    """The mask of one sample, bool [frames]. Kinds that do not exist for so few frames, or that would leave nothing to
    learn, mask nothing."""
    if not ratios:
        return np.ones(frames, bool)
    name = mask_name(choose_mask(ratios, float(random.random())))
    if name.startswith("quarter") and frames < 4:
        return np.ones(frames, bool)
    mask = frame_mask(name, frames, random)
    return mask if mask.any() else np.ones(frames, bool)

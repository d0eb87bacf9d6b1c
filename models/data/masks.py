"""Frame masks: which latent frames of a sample are noised and learnt, which stay clean as a condition.

Upstream: opensora/utils/train_utils.py, ``MaskGenerator`` (v1.2). True = noised, False = condition.
"""

from __future__ import annotations

import numpy as np


def choose_mask(ratios: dict[str, float], draw: float) -> str:
    """The mask a uniform ``draw`` in [0, 1) picks: cumulative in the order given, ``identity`` takes the remainder."""
    edge = 0.0
    for name, probability in ratios.items():
        if name == "identity":
            continue
        edge += probability
        if draw < edge:
            return name
    return "identity"


def frame_mask(name: str, frames: int, random: np.random.Generator) -> np.ndarray:
    """A mask bool [frames] of kind ``name``. ValueError where the kind does not exist for so few frames."""
    mask = np.ones(frames, bool)
    if frames <= 1 or name == "identity":
        return mask
    if name == "random":
        mask = random.random(frames) > random.uniform(0.1, 0.9)
        # At least one frame is learnt.
        mask[-1] |= not mask.any()
        return mask
    if name == "interpolate":
        mask[int(random.integers(2)) :: 2] = False
        return mask
    kind, _, place = name.partition("_")
    if kind not in ("quarter", "image"):
        raise ValueError(f"unknown mask {name!r}")
    size = 1 if kind == "image" else int(random.integers(1, frames // 4 + 1))
    if place == "random":
        start = int(random.integers(0, frames - size + 1))
        mask[start : start + size] = False
    if place in ("head", "head_tail"):
        mask[:size] = False
    if place in ("tail", "head_tail"):
        mask[-size:] = False
    return mask


def draw_mask(ratios: dict[str, float] | None, frames: int, random: np.random.Generator) -> np.ndarray:
    """The mask of one sample, bool [frames]. Kinds that do not exist for so few frames, or that would leave nothing to
    learn, mask nothing."""
    if not ratios:
        return np.ones(frames, bool)
    name = choose_mask(ratios, float(random.random()))
    if name.startswith("quarter") and frames < 4:
        return np.ones(frames, bool)
    mask = frame_mask(name, frames, random)
    return mask if mask.any() else np.ones(frames, bool)

"""Checkpoints saved in the middle of a run under one layout and gone on with under another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.layouts.cases import BOTH_KINDS, ZERO, Case
from tests.layouts.compare import Outcome, Wanted, run

SIX = [*ZERO, *(Case(sp=2, sp_kind=kind, zero=2, recompute=1) for kind in BOTH_KINDS)]
SAVED_AT, STEPS = 5, 10
# Origin and destination, numbers of SIX.
Pair = tuple[int, int]


def name(pair: Pair) -> str:
    return f"{SIX[pair[0]].name(2)}-onto-{SIX[pair[1]].name(2)}"


def saved(folder: Path, origin: int) -> str:
    """Where the uninterrupted run of a layout leaves its checkpoint."""
    return str(folder / f"from-{origin}")


def move(folder: Path, pairs: Sequence[Pair]) -> tuple[list[Outcome], dict[Pair, Outcome]]:
    """Six uninterrupted runs on two ranks that save on the way, and then every pair going on, all in one start."""
    saving = [
        Wanted(case, steps=STEPS, save=saved(folder, number), save_at=SAVED_AT) for number, case in enumerate(SIX)
    ]
    loading = [Wanted(SIX[onto], steps=STEPS, load=saved(folder, origin)) for origin, onto in pairs]
    done = run(folder / "two", 2, [*saving, *loading], 900)
    return done[: len(SIX)], dict(zip(pairs, done[len(SIX) :], strict=True))


def difference(before: Outcome, after: Outcome) -> float:
    """Largest relative difference of the losses after the move."""
    expected = before.losses[SAVED_AT:]
    return float((np.abs(after.losses - expected) / expected).max())


def goes_on_bit_for_bit(before: Outcome, after: Outcome) -> bool:
    same = all(np.array_equal(after.state[key], values) for key, values in before.state.items())
    told = zip((after.losses, after.norms), (before.losses, before.norms), strict=True)
    return same and all(np.array_equal(new, old[SAVED_AT:]) for new, old in told)

"""Checkpoints move between layouts: saved under each, continued under each of the others."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from tests.layouts.cases import BOTH_KINDS, ZERO, Case
from tests.layouts.compare import LIMITS, Outcome, Wanted, run

pytestmark = [pytest.mark.train, pytest.mark.timeout(900)]

SIX = [*ZERO, *(Case(sp=2, sp_kind=kind, zero=2, recompute=1) for kind in BOTH_KINDS)]
SAVED_AT, STEPS = 5, 10
PAIRS = list(itertools.product(range(len(SIX)), repeat=2))
# What four ranks and one go on with, each from another layout of two.
ELSEWHERE = {
    4: [Case(sp=2, sp_kind="dsp", zero=3)],
    1: [Case(recompute=1, accumulation=3)],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("moves")


@pytest.fixture(scope="module")
def straight(folder: Path) -> list[Outcome]:
    """Uninterrupted runs that save on the way, and then every layout going on from every one of them, in one start."""
    saving = [
        Wanted(case, steps=STEPS, save=str(folder / f"from-{number}"), save_at=SAVED_AT)
        for number, case in enumerate(SIX)
    ]
    loading = [Wanted(SIX[onto], steps=STEPS, load=str(folder / f"from-{origin}")) for origin, onto in PAIRS]
    return run(folder / "two", 2, [*saving, *loading], 600)


def name(pair: tuple[int, int]) -> str:
    return f"{SIX[pair[0]].name(2)}-onto-{SIX[pair[1]].name(2)}"


@pytest.mark.parametrize("pair", PAIRS, ids=name)
def test_next_losses_are_those_of_the_uninterrupted_run(straight: list[Outcome], pair: tuple[int, int]) -> None:
    origin, onto = pair
    before = straight[origin]
    after = straight[len(SIX) + PAIRS.index(pair)]
    assert len(after.losses) == STEPS - SAVED_AT
    if origin == onto:
        assert np.array_equal(after.losses, before.losses[SAVED_AT:])
        assert np.array_equal(after.norms, before.norms[SAVED_AT:])
        for key, values in before.state.items():
            assert np.array_equal(after.state[key], values), key
    difference = np.abs(after.losses - before.losses[SAVED_AT:]) / before.losses[SAVED_AT:]
    assert difference.max() <= LIMITS["losses"]


@pytest.mark.parametrize("world", [4, 1])
def test_other_numbers_of_ranks_go_on_alike(folder: Path, straight: list[Outcome], world: int) -> None:
    cases = ELSEWHERE[world]
    wanted = [Wanted(case, steps=STEPS, load=str(folder / f"from-{5 - n}")) for n, case in enumerate(cases)]
    for number, outcome in enumerate(run(folder / str(world), world, wanted, 300)):
        before = straight[5 - number].losses[SAVED_AT:]
        assert (np.abs(outcome.losses - before) / before).max() <= LIMITS["losses"]

"""Checkpoints move between layouts: saved under each of six, continued under three of them.

``python -m tests.layouts moves`` continues each under all six.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.layouts.cases import Case
from tests.layouts.compare import LIMITS, Outcome, Wanted, run
from tests.layouts.moves import SAVED_AT, SIX, STEPS, Pair, difference, goes_on_bit_for_bit, move, name, saved

pytestmark = [pytest.mark.train, pytest.mark.timeout(900)]

# Each onto itself and onto two others, so that every layout is also gone on with from three.
PAIRS = [(origin, (origin + step) % len(SIX)) for origin in range(len(SIX)) for step in (0, 1, 3)]
# What four ranks and one go on with, each from another layout of two.
ELSEWHERE = {4: (5, Case(sp=2, sp_kind="dsp", zero=3)), 1: (4, Case(recompute=1, accumulation=3))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("moves")


@pytest.fixture(scope="module")
def moved(folder: Path) -> tuple[list[Outcome], dict[Pair, Outcome]]:
    return move(folder, PAIRS)


@pytest.mark.parametrize("pair", PAIRS, ids=name)
def test_next_losses_are_those_of_the_uninterrupted_run(
    moved: tuple[list[Outcome], dict[Pair, Outcome]], pair: Pair
) -> None:
    before, after = moved[0][pair[0]], moved[1][pair]
    assert len(after.losses) == STEPS - SAVED_AT
    assert difference(before, after) <= LIMITS["losses"]
    if pair[0] == pair[1]:
        assert goes_on_bit_for_bit(before, after)


@pytest.mark.parametrize("world", ELSEWHERE)
def test_other_numbers_of_ranks_go_on_alike(
    folder: Path, moved: tuple[list[Outcome], dict[Pair, Outcome]], world: int
) -> None:
    origin, case = ELSEWHERE[world]
    [after] = run(folder / str(world), world, [Wanted(case, steps=STEPS, load=saved(folder, origin))], 300)
    assert difference(moved[0][origin], after) <= LIMITS["losses"]

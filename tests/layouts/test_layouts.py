"""Every layout trains as one process does; DP and ZeRO 1, 2, 3 bit for bit alike; and mistakes do not go unseen.

``python -m tests.layouts`` runs every layout in every way. Here each layout of two ranks is run in its plainest way,
some in one more, and two layouts of four ranks: four workers on two cores are slow.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.parallel.theory import Tokens, step_traffic
from tests.layouts.breaks import BREAKS
from tests.layouts.cases import GLOBAL_BATCH, SIZE, STEPS, Case, config, layouts
from tests.layouts.compare import Outcome, Wanted, check, equal, run

pytestmark = [pytest.mark.train, pytest.mark.timeout(900)]

# By number of ranks; 0: one rank, three steps, what the mistakes are compared with.
Outcomes = dict[tuple[int, Case], Outcome]

# Recomputation and micro steps, where the layout has a part in them.
REPEATED = [
    Case(recompute=1, accumulation=3),
    Case(zero=3, recompute=1, accumulation=3),
    Case(sp=2, sp_kind="dsp", recompute=1, accumulation=3),
]
TWO = [*layouts(2), *REPEATED]
FOUR = [
    Case(sp=4, sp_kind="dsp", recompute=1),
    Case(sp=2, zero=3),
]
# What the precision features do must not depend on the layout either.
OTHERS = [Case(zero=1, offload=True), Case(zero=2, dtype="fp16"), Case(dtype="fp16"), Case(zero=1, jit="on")]
BROKEN = {
    "backward_scaled": Case(sp=2, sp_kind="dsp"),
    "local_norm": Case(zero=1),
    "shared_randomness": Case(),
    "padding_seen": Case(sp=2),
    "samples_counted_by_all": Case(sp=2),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    folder = tmp_path_factory.mktemp("layouts")
    one, short = run(folder / "one", 1, [Wanted(Case()), Wanted(Case(), steps=3)], 120)
    results: Outcomes = {(1, Case()): one, (0, Case()): short}
    for world, cases in ((2, [*TWO, *OTHERS]), (4, FOUR)):
        # Half precision is slow here.
        wanted = [Wanted(case, steps=STEPS if case.dtype == "fp32" else 2) for case in cases]
        done = run(folder / str(world), world, wanted, 800)
        results |= {(world, case): outcome for case, outcome in zip(cases, done, strict=True)}
    return results


@pytest.mark.parametrize("case", TWO, ids=lambda case: case.name(2))
def test_two_ranks_train_as_one(outcomes: Outcomes, case: Case) -> None:
    check(outcomes[2, case], outcomes[1, Case()])


@pytest.mark.parametrize("case", FOUR, ids=lambda case: case.name(4))
def test_four_ranks_train_as_one(outcomes: Outcomes, case: Case) -> None:
    check(outcomes[4, case], outcomes[1, Case()])


@pytest.mark.parametrize(
    ("case", "plain"),
    [
        (Case(zero=1), Case()),
        (Case(zero=2), Case()),
        (Case(zero=3), Case()),
        (Case(zero=3, recompute=1, accumulation=3), Case(recompute=1, accumulation=3)),
    ],
)
def test_zero_equals_data_parallel_bit_for_bit(outcomes: Outcomes, case: Case, plain: Case) -> None:
    assert equal(outcomes[2, case], outcomes[2, plain])


@pytest.mark.parametrize(("world", "case"), [*((2, case) for case in TWO), *((4, case) for case in FOUR)])
def test_bytes_are_those_of_the_formulas(outcomes: Outcomes, world: int, case: Case) -> None:
    outcome = outcomes[world, case]
    samples = GLOBAL_BATCH // (world // case.sp) // case.accumulation
    tokens = Tokens(samples, SIZE[1], (SIZE[2] // 2) * (SIZE[3] // 2))
    expected = step_traffic(config(case), world, outcome.units, tokens)
    for rank in outcome.traffic:
        for step in rank:
            assert {kind: tuple(entry) for kind, entry in step.items()} == expected


def test_host_memory_changes_nothing(outcomes: Outcomes) -> None:
    assert equal(outcomes[2, Case(zero=1, offload=True)], outcomes[2, Case(zero=1)])


def test_compiled_trains_as_eager_does(outcomes: Outcomes) -> None:
    check(outcomes[2, Case(zero=1, jit="on")], outcomes[1, Case()])


def test_half_precision_does_not_depend_on_zero(outcomes: Outcomes) -> None:
    """Master weights in full precision, the same rounding of what layers see."""
    half = outcomes[2, Case(zero=2, dtype="fp16")]
    assert equal(half, outcomes[2, Case(dtype="fp16")])
    full = outcomes[1, Case()]
    assert np.isfinite(half.norms).all()
    assert abs(half.losses[0] - full.losses[0]) / full.losses[0] < 0.01


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    wanted = [Wanted(case, breaks=name, steps=3) for name, case in BROKEN.items()]
    done = run(tmp_path_factory.mktemp("mistakes"), 2, wanted, 300)
    return dict(zip(BROKEN, done, strict=True))


@pytest.mark.parametrize("name", BREAKS)
def test_a_mistake_is_seen(outcomes: Outcomes, mistaken: dict[str, Outcome], name: str) -> None:
    with pytest.raises(AssertionError, match="over the limits"):
        check(mistaken[name], outcomes[0, Case()])


def test_ranks_end_together_with_the_first_error(tmp_path: Path) -> None:
    """A layout that cannot be is refused by every rank, before any collective."""
    with pytest.raises(AssertionError, match="sp 3 does not divide a world of 2 workers"):
        run(tmp_path, 2, [Wanted(Case(sp=3))], 60)

"""STDiT and STDiT2 under IDDPM train on two ranks as on one: data parallel, ZeRO 3 and both ways to share tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.layouts.cases import Case
from tests.layouts.compare import Outcome, Wanted, check, equal, run

pytestmark = [pytest.mark.train, pytest.mark.timeout(600)]

STEPS = 2
MODELS = [Case(model=name, process="iddpm") for name in ("STDiT", "STDiT2")]
LAYOUTS = [{}, {"zero": 3, "recompute": 1}, {"sp": 2}, {"sp": 2, "sp_kind": "dsp", "recompute": 1}]
CASES = [replace(model, **layout) for model in MODELS for layout in LAYOUTS]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, Case], Outcome]:
    folder = tmp_path_factory.mktemp("models")
    results = {}
    for world, cases in ((1, MODELS), (2, CASES)):
        done = run(folder / str(world), world, [Wanted(case, steps=STEPS) for case in cases], 400)
        results |= {(world, case): outcome for case, outcome in zip(cases, done, strict=True)}
    return results


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name(2))
def test_two_ranks_train_as_one(outcomes: dict[tuple[int, Case], Outcome], case: Case) -> None:
    check(outcomes[2, case], outcomes[1, Case(model=case.model, process=case.process)])


@pytest.mark.parametrize("model", MODELS, ids=lambda case: case.model)
def test_zero_equals_data_parallel_bit_for_bit(outcomes: dict[tuple[int, Case], Outcome], model: Case) -> None:
    assert equal(outcomes[2, replace(model, zero=3, recompute=1)], outcomes[2, model])

"""From metrics of all ranks to the numbers of a row."""

from __future__ import annotations

import math

import pytest

from ostrain.bench.measure import Measured, measure, parse_lines, quartiles
from ostrain.bench.summary import against_baseline, change_since, figures, tokens_per_second
from ostrain.errors import OstrainError
from tests.ostrain.bench_helpers import record


def two_ranks(steps: int = 8) -> dict[int, list[dict[str, object]]]:
    """Rank 1 is slower by half from step 3 on; the first step takes 10 s longer."""
    fast = [record(step, 10.5 if step == 1 else 0.5, memory=1000) for step in range(1, steps + 1)]
    slow = [record(step, 10.5 if step == 1 else 0.75, memory=3000) for step in range(1, steps + 1)]
    return {0: fast, 1: slow}


def test_the_slowest_rank_counts_and_warm_up_does_not() -> None:
    found = measure(two_ranks(), [], warmup=3)
    assert found.seconds == (0.75,) * 5
    assert (found.memory, found.memory_least, found.ranks) == (3000, 1000, 2)
    assert found.tokens == (100,) * 5
    assert found.data_wait == (0.01,) * 5


def test_compile_time_is_the_event_or_the_first_step() -> None:
    found = measure(two_ranks(), [], warmup=3)
    assert found.compile_seconds == pytest.approx(10.5 - 0.75) and not found.compile_told
    events = [{"event": "train_started"}, {"event": "compiled", "seconds": 7.0}, {"event": "compiled", "seconds": 2.0}]
    found = measure(two_ranks(), events, warmup=3)
    assert found.compile_seconds == 9.0 and found.compile_told


def test_the_first_step_of_a_shape_is_not_counted() -> None:
    shapes = ["a", "a", "b", "a", "b", "c", "b"]
    records = [record(step, step / 10, shape=shape) for step, shape in enumerate(shapes, 1)]
    found = measure({0: records}, [], warmup=2)
    assert found.shapes == ("a", "b", "b")
    assert found.seconds == (0.4, 0.5, 0.7)


def test_steps_that_a_rank_lacks_are_not_counted() -> None:
    ranks = two_ranks(6)
    del ranks[1][4]
    assert len(measure(ranks, [], warmup=3).seconds) == 2
    ranks[1] = []
    with pytest.raises(OstrainError) as caught:
        measure(ranks, [], warmup=3)
    assert "rank 1" in caught.value.why
    with pytest.raises(OstrainError, match="no step of the run can be counted"):
        measure(two_ranks(3), [], warmup=3)


def test_communication_by_collective_of_the_mean_rank() -> None:
    ranks = {
        rank: [record(step, comm={"all_reduce": [2, 100 + rank * 50], "all_gather": [1, 10]}) for step in range(1, 5)]
        for rank in range(2)
    }
    found = measure(ranks, [], warmup=1)
    assert found.comm == {"all_reduce": [2.0, 125.0], "all_gather": [1.0, 10.0]}
    assert (found.comm_most, found.comm_total) == (160.0, 270.0)
    del ranks[1][3]["comm"]
    unknown = measure(ranks, [], warmup=1)
    assert (unknown.comm, unknown.comm_most, unknown.comm_total) == (None, None, None)
    alone = measure({0: [record(step, comm={}) for step in range(1, 5)]}, [], warmup=1)
    assert (alone.comm, alone.comm_total) == ({}, 0.0)


def test_torn_lines_are_left_out() -> None:
    assert parse_lines(b'{"step": 1}\n\n{"step": 2}\n{"st') == [{"step": 1}, {"step": 2}]


def test_measurements_survive_json() -> None:
    import json

    found = measure(two_ranks(), [], warmup=3)
    assert Measured.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_quartiles() -> None:
    assert quartiles([5.0]) == (5.0, 5.0, 5.0)
    assert quartiles([4.0, 1.0, 2.0, 3.0, 5.0]) == (2.0, 3.0, 4.0)


def test_tokens_per_second_does_not_follow_one_slow_step() -> None:
    records = [record(step, 50.0 if step == 5 else 0.5) for step in range(1, 10)]
    assert tokens_per_second([measure({0: records}, [], warmup=2)]) == pytest.approx(200.0)


def test_tokens_per_second_of_several_shapes_weighs_them_by_time() -> None:
    records = [record(step, 1.0, shape="a") for step in (1, 2, 3)]
    records += [record(step, 4.0, shape="b", tokens_per_s=100.0) for step in (4, 5)]
    found = measure({0: records}, [], warmup=1)
    assert found.tokens == (100, 100, 400)
    assert tokens_per_second([found]) == pytest.approx(600 / 6)


def test_runs_of_an_entry_are_put_together() -> None:
    runs = [measure({0: [record(step, seconds) for step in range(1, 6)]}, [], warmup=2) for seconds in (1.0, 2.0)]
    row = figures(runs)
    assert (row["runs"], row["counted"], row["seconds"], row["samples"]) == (2, 6, 1.5, 4.0)
    assert (row["seconds_least"], row["seconds_most"], row["seconds_mean"]) == (1.0, 2.0, 1.5)
    assert row["data_wait_share"] == pytest.approx(0.06 / 9)


def test_efficiency_is_speed_up_over_workers() -> None:
    row = {"tokens_per_s": 300.0, "workers": 4}
    assert against_baseline(row, {"tokens_per_s": 100.0, "workers": 1}) == {"speedup": 3.0, "efficiency": 0.75}
    assert against_baseline(row, {"tokens_per_s": 100.0, "workers": 2}) == {"speedup": 3.0, "efficiency": 1.5}
    assert against_baseline(row, None) == against_baseline({"tokens_per_s": None}, row) == {}


def test_change_since_the_last_time_knows_the_spread() -> None:
    def row(seconds: float, spread: float) -> dict[str, float]:
        return {"seconds": seconds, "seconds_low": seconds - spread / 2, "seconds_high": seconds + spread / 2,
                "memory": 200, "comm_total": 0.0, "compile_seconds": 5.0}  # fmt: skip

    change = change_since(row(1.1, 0.02), {**row(1.0, 0.05), "memory": 100}, 12.0, "abc")
    assert change is not None
    assert math.isclose(change.seconds, 0.1, rel_tol=1e-9) and not change.within_spread
    assert (change.memory, change.comm, change.compile_seconds, change.since) == (1.0, None, 0.0, 12.0)
    noisy = change_since(row(1.1, 0.02), row(1.0, 0.3), 12.0, "abc")
    assert noisy is not None and noisy.within_spread
    assert change_since(row(1.0, 0.1), {"seconds": None}, 0.0, "") is None

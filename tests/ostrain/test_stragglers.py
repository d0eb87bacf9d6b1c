"""Who holds the others up, from metrics as ranks write them."""

from __future__ import annotations

from typing import Any

import pytest

from ostrain.stragglers import stragglers


def rows(own: float, *, step_time: float = 1.0, data: float = 0.0, steps: int = 20, timed: bool = True) -> list[Any]:
    """A rank that works ``own`` seconds of every step (``data`` of them waiting for samples) and waits for the rest."""
    wait = step_time - own if timed else None
    return [
        {"step": step, "attempt": 1, "seconds": step_time, "data_wait": data, "comm_wait": wait}
        for step in range(1, steps + 1)
    ]


def test_the_one_the_others_wait_for() -> None:
    (found,) = stragglers({0: rows(0.5), 1: rows(0.5), 2: rows(0.95), 3: rows(0.52)})
    assert (found.rank, found.cause) == (2, "work")
    assert found.own == pytest.approx(0.95) and found.usual == pytest.approx(0.5)
    assert str(found) == ("rank 2 works 0.95 s a step, the others 0.50 s: 45% of every step is waiting for it")


def test_slow_data_is_told_from_slow_work() -> None:
    (found,) = stragglers({0: rows(0.5), 1: rows(0.9, data=0.45)})
    assert (found.rank, found.cause) == (1, "data")
    (found,) = stragglers({0: rows(0.5, timed=False), 1: rows(0.9, data=0.45, timed=False)})
    assert (found.rank, found.cause) == (1, "data")


def test_equal_ranks_are_no_stragglers() -> None:
    assert stragglers({rank: rows(0.9 + rank / 1000) for rank in range(8)}) == []
    assert stragglers({0: rows(0.05), 1: rows(0.08)}) == [], "8% of a step is nobody's loss"


def test_one_slow_step_makes_no_straggler() -> None:
    bumpy = rows(0.5)
    for step in (5, 9):
        bumpy[step]["comm_wait"] = 0.0
    assert stragglers({0: rows(0.5), 1: bumpy}) == []


def test_warming_up_does_not_count() -> None:
    cold = rows(0.5)
    for step in range(3):
        cold[step].update(seconds=30.0, comm_wait=0.0)
    assert stragglers({0: rows(0.5), 1: cold}) == []


def test_too_little_to_judge() -> None:
    assert stragglers({}) == [] and stragglers({0: rows(0.9)}) == []
    assert stragglers({0: rows(0.5, steps=3), 1: rows(0.9, steps=3)}) == []
    assert stragglers({0: rows(0.5), 1: [{"step": None}, {"what": 1}]}) == []


def test_only_timed_steps_are_compared_where_there_are_some() -> None:
    sampled = rows(0.5, steps=100)
    slow = rows(0.9, steps=100)
    for number, (one, other) in enumerate(zip(sampled, slow, strict=True)):
        if number % 10:
            one["comm_wait"] = other["comm_wait"] = None
    (found,) = stragglers({0: sampled, 1: slow})
    assert found.rank == 1 and found.own == pytest.approx(0.9)

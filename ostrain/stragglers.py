"""Ranks that hold the others up, step after step: whose own work is long while the others wait for them.

In a synchronous step every rank takes equally long; what differs is how it spends the time. ``comm_wait`` of the
metrics is the time inside collectives: short for who comes last, long for who waits; ``data_wait`` the time that
samples were waited for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

# Steps that are looked at, the newest ones; the first ones of an attempt compile and warm up, and are left out where
# enough others are there.
WINDOW = 20
WARM_UP = 3
LEAST_STEPS = 4
# A rank is a straggler when its own time is this much above the others', in most of the steps, and when what the
# others lose by it is this share of a step.
FACTOR = 1.3
MOST = 2 / 3
LEAST_SHARE = 0.1


@dataclass(frozen=True)
class Straggler:
    """One slow rank. own, usual: seconds a step of its own, and of the median of the others. share: of the step that
    the others lose by it. cause: ``data`` where most of the surplus is waiting for samples, else ``work``."""

    rank: int
    own: float
    usual: float
    share: float
    cause: str

    def __str__(self) -> str:
        what = "waits for its data" if self.cause == "data" else "works"
        return (
            f"rank {self.rank} {what} {self.own:.2f} s a step, the others {self.usual:.2f} s: "
            f"{self.share:.0%} of every step is waiting for it"
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "rank": self.rank, "own": self.own, "usual": self.usual, "share": self.share, "cause": self.cause,
        }  # fmt: skip


@dataclass(frozen=True)
class _Step:
    """How one rank spent one step, in seconds."""

    seconds: float
    data: float
    waiting: float | None

    @property
    def own(self) -> float:
        return self.data if self.waiting is None else max(0.0, self.seconds - self.waiting)


def stragglers(metrics: Mapping[int, Sequence[Mapping[str, Any]]]) -> list[Straggler]:
    """The slow ranks, the slowest first. metrics: rank -> lines of its ``metrics/rank-N.jsonl``, of one attempt.

    Steps are compared one by one, so that a checkpoint or a long clip, which all ranks share, makes nobody slow.
    Where no step has ``comm_wait`` (a task that measures none) ranks are judged by their waiting for data alone.
    """
    steps = {rank: _steps(rows) for rank, rows in metrics.items()}
    common = sorted(set.intersection(*map(set, steps.values()))) if len(steps) > 1 else []
    timed = [step for step in common if all(rows[step].waiting is not None for rows in steps.values())]
    chosen = (timed if len(timed) >= LEAST_STEPS else common)[-WINDOW:]
    if len(chosen) < LEAST_STEPS:
        return []
    own = [sorted(rows[step].own for rows in steps.values()) for step in chosen]
    data = [sorted(rows[step].data for rows in steps.values()) for step in chosen]
    found = (_judge(rank, [rows[step] for step in chosen], own, data) for rank, rows in steps.items())
    return sorted((one for one in found if one is not None), key=lambda one: -one.own)


def _steps(rows: Sequence[Mapping[str, Any]]) -> dict[int, _Step]:
    """By number; a step that was made twice counts as it was made last."""
    found = {}
    for row in rows[min(WARM_UP, max(0, len(rows) - LEAST_STEPS)) :]:
        step, seconds, waiting = row.get("step"), row.get("seconds"), row.get("comm_wait")
        if isinstance(step, int) and isinstance(seconds, int | float):
            waited = float(waiting) if isinstance(waiting, int | float) else None
            found[step] = _Step(float(seconds), float(row.get("data_wait") or 0.0), waited)
    return found


def _judge(
    rank: int, spent: Sequence[_Step], own: Sequence[Sequence[float]], data: Sequence[Sequence[float]]
) -> Straggler | None:
    """One rank beside the others. spent: how it spent the chosen steps; own, data: of all ranks, sorted, by step."""
    usual = [_median_without(one.own, everyone) for one, everyone in zip(spent, own, strict=True)]
    slower = sum(one.own > FACTOR * theirs for one, theirs in zip(spent, usual, strict=True))
    mine, theirs = median(one.own for one in spent), median(usual)
    share = (mine - theirs) / max(1e-9, median(one.seconds for one in spent))
    if slower < MOST * len(spent) or share < LEAST_SHARE:
        return None
    waited = median(_median_without(one.data, everyone) for one, everyone in zip(spent, data, strict=True))
    surplus = median(one.data for one in spent) - waited
    return Straggler(rank, mine, theirs, min(1.0, share), "data" if surplus > (mine - theirs) / 2 else "work")


def _median_without(value: float, everyone: Sequence[float]) -> float:
    """Median of the sorted numbers without one that is ``value``, in the time of a search: there may be thousands."""
    gone, count = bisect_left(everyone, value), len(everyone) - 1

    def other(number: int) -> float:
        return everyone[number if number < gone else number + 1]

    return other(count // 2) if count % 2 else (other(count // 2 - 1) + other(count // 2)) / 2

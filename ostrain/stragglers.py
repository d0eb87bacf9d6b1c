"""Ranks that hold the others up, step after step: whose own work is long while the others wait for them.

In a synchronous step every rank takes equally long; what differs is how it spends the time. ``comm_wait`` of the
metrics is the time inside collectives: short for who comes last, long for who waits; ``data_wait`` the time that
samples were waited for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

# Steps that are looked at, the newest ones; compiling and warm-up drop out of a median.
WINDOW = 50
LEAST_STEPS = 3
# A rank is a straggler when its own time is this much above the others' median, and is this share of the step.
FACTOR = 1.3
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
class _Shares:
    """Medians of a rank, in seconds a step."""

    seconds: float
    data: float
    waiting: float | None

    @property
    def own(self) -> float:
        return self.data if self.waiting is None else max(0.0, self.seconds - self.waiting)


def stragglers(metrics: Mapping[int, Sequence[Mapping[str, Any]]]) -> list[Straggler]:
    """The slow ranks, the slowest first. metrics: rank -> lines of its ``metrics/rank-N.jsonl``.

    Lines without ``comm_wait`` (a task that measures none) are judged by their waiting for data alone.
    """
    shares = {rank: share for rank, rows in metrics.items() if (share := _shares(rows)) is not None}
    if len(shares) < 2:
        return []
    found = []
    for rank, share in shares.items():
        others = [other for number, other in shares.items() if number != rank]
        usual = median(other.own for other in others)
        lost = share.own - usual
        part = lost / share.seconds if share.seconds > 0 else 0.0
        if share.own > FACTOR * usual and part >= LEAST_SHARE:
            surplus = share.data - median(other.data for other in others)
            found.append(Straggler(rank, share.own, usual, min(1.0, part), "data" if surplus > lost / 2 else "work"))
    return sorted(found, key=lambda one: -one.own)


def _shares(rows: Sequence[Mapping[str, Any]]) -> _Shares | None:
    """Of the newest steps; None where there are too few."""
    recent = [row for row in rows if isinstance(row.get("seconds"), int | float)][-WINDOW:]
    if len(recent) < LEAST_STEPS:
        return None
    waits = [row["comm_wait"] for row in recent if isinstance(row.get("comm_wait"), int | float)]
    # Steps of a collective timed: seconds and waiting of the same steps belong together.
    timed = [row for row in recent if isinstance(row.get("comm_wait"), int | float)]
    base = timed if len(timed) >= LEAST_STEPS else recent
    return _Shares(
        seconds=median(float(row["seconds"]) for row in base),
        data=median(float(row.get("data_wait") or 0.0) for row in base),
        waiting=median(waits) if len(timed) >= LEAST_STEPS else None,
    )

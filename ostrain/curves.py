"""Curves of long runs made small: every bucket keeps its least and its greatest point, so that no spike gets lost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

Point = tuple[float, float]


def thinned(points: Sequence[Point], limit: int) -> list[Point]:
    """At most ``limit`` (at least 4) of points in order of x: ends, and extremes of equal shares of the x axis."""
    if len(points) <= limit:
        return list(points)
    buckets: dict[int, list[Point]] = {}
    first, last = points[0], points[-1]
    count = max(1, (limit - 2) // 2)
    width = (last[0] - first[0]) / count or 1.0
    for point in points[1:-1]:
        buckets.setdefault(min(count - 1, int((point[0] - first[0]) / width)), []).append(point)
    kept = [first]
    for number in sorted(buckets):
        low, high = min(buckets[number], key=_y), max(buckets[number], key=_y)
        kept += sorted({low, high})
    return [*kept, last]


def _y(point: Point) -> float:
    return point[1]


def finite(pairs: Iterable[tuple[object, object]]) -> list[Point]:
    """Points whose both numbers are numbers."""
    return [
        (float(x), float(y))
        for x, y in pairs
        if isinstance(x, int | float) and isinstance(y, int | float) and math.isfinite(x) and math.isfinite(y)
    ]


def wide(points: Iterable[Point]) -> bool:
    """Whether values span so much that only a logarithmic axis shows all of them."""
    values = [y for _, y in points]
    return bool(values) and min(values) > 0 and max(values) > 50 * min(values)


def logarithms(points: Iterable[Point]) -> list[Point]:
    return [(x, math.log10(y)) for x, y in points]


class LatestAttempt:
    """One value a step, as the last attempt saw it: what an attempt repeats, and what it has not reached again, goes.

    At most ``limit`` points are kept; older ones are thinned.
    """

    def __init__(self, limit: int = 20_000) -> None:
        self._limit = limit
        self._values: dict[int, float] = {}
        self._attempt = 0

    def add(self, step: int, attempt: int, value: object) -> None:
        if attempt < self._attempt:
            return
        if attempt > self._attempt:
            if self._attempt:
                self._values = {known: kept for known, kept in self._values.items() if known < step}
            self._attempt = attempt
        if isinstance(value, int | float) and math.isfinite(value):
            self._values[step] = float(value)
        if len(self._values) > self._limit:
            self._values = {int(x): y for x, y in thinned(self.points(), self._limit // 2)}

    def points(self) -> list[Point]:
        return sorted(self._values.items())

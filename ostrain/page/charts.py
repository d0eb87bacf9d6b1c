"""The pictures of the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from ostrain.curves import Point, logarithms, wide
from ostrain.page.history import Spread
from ostrain.page.svg import BOTTOM, TOP, Chart
from ostrain.page.timeline import Moment, Stretch

MOST_RANKS = 64


def curve(name: str, attempts: Mapping[int, Sequence[Point]]) -> Markup | None:
    """A value by step. The last attempt is drawn over the earlier ones; every restart has a mark."""
    shown = {attempt: sorted(points) for attempt, points in sorted(attempts.items()) if points}
    everything = [point for points in shown.values() for point in points]
    if not everything:
        return None
    log = wide(everything)
    if log:
        shown = {attempt: logarithms(points) for attempt, points in shown.items()}
        everything = logarithms(everything)
    lowest, highest = min(y for _, y in everything), max(y for _, y in everything)
    chart = Chart((min(x for x, _ in everything), max(x for x, _ in everything)), (lowest, highest))
    if log:
        chart.y_label = lambda value: f"{10**value:.3g}"
    newest = max(shown)
    for attempt, points in shown.items():
        chart.line(points, "line" if attempt == newest else "line before")
        if attempt != min(shown):
            chart.mark(points[0][0], f"attempt {attempt}")
    return chart.text(f"{name} by step", x_axis="step, logarithmic scale" if log else "step")


def distribution(spreads: Sequence[Spread]) -> tuple[Markup, int] | None:
    """Seconds a step of every rank: middle half as a bar, median as a line, least to most as a thin line.

    With more than ``MOST_RANKS`` ranks the slowest are drawn. Also: how many are left out.
    """
    if not spreads:
        return None
    chosen = sorted(sorted(spreads, key=lambda one: -one.median)[:MOST_RANKS], key=lambda one: one.rank)
    left = min(0.0, *(one.least for one in chosen))
    # One step that compiled must not press all boxes flat.
    right = max(min(one.most, 4 * one.high) for one in chosen)
    height = TOP + BOTTOM + 16 * len(chosen)
    chart = Chart((left, right), (-0.5, len(chosen) - 0.5), height=height, left=110)
    for place, one in enumerate(chosen):
        y = len(chosen) - 1 - place
        title = f"rank {one.rank} on {one.node}: median {one.median:.4g} s of {one.count} steps, most {one.most:.4g} s"
        chart.box(one.least, min(one.most, right), y, 1, "whisker", title)
        chart.box(one.low, one.high, y, 10, "box", title)
        chart.box(one.median, one.median, y, 12, "median", title)
        chart.name(y, f"{one.node[:12]}/{one.rank}")
    return chart.text("seconds a step by rank", y_ticks=False, x_axis="seconds"), len(spreads) - len(chosen)


def timeline(stretches: Sequence[Stretch], moments: Sequence[Moment]) -> Markup | None:
    """Attempts as bars over time, faults and checkpoints as marks."""
    if not stretches:
        return None
    start, end = min(one.start for one in stretches), max(one.end for one in stretches)
    height = TOP + BOTTOM + 22 * len(stretches)
    chart = Chart((start, end), (-0.5, len(stretches) - 0.5), height=height, left=110, x_label=_clock(end - start))
    rows = {one.attempt: len(stretches) - 1 - place for place, one in enumerate(stretches)}
    for one in stretches:
        kind = "box bad" if one.bad else "box"
        chart.box(one.start, one.end, rows[one.attempt], 14, kind, f"attempt {one.attempt}: {one.outcome}")
        chart.name(rows[one.attempt], f"attempt {one.attempt}")
    for moment in moments:
        if moment.kind in ("fault", "checkpoint", "recovery"):
            row = rows.get(moment.attempt, 0)
            chart.box(moment.time, moment.time, row, 18, moment.kind, moment.text, least=3.0)
    return chart.text("attempts over time", y_ticks=False, x_axis="")


def _clock(span: float) -> Callable[[float], str]:
    form = "%H:%M:%S" if span < 7200 else "%d %b %H:%M"
    return lambda value: time.strftime(form, time.localtime(value))

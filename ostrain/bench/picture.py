"""The picture of a benchmark: time, memory and traffic of every entry beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ostrain.bench.summary import Row
from ostrain.bench.text import bytes_text, seconds_text, share_text
from ostrain.errors import OstrainError

_BLUE, _PALE, _ORANGE, _GREY = "#1f4e8c", "#9db7d5", "#d9822b", "#888888"
_COMM = {"all_reduce": "#1f4e8c", "all_gather": "#5a8fc8", "reduce_scatter": "#d9822b", "all_to_all": "#6aa84f",
         "broadcast": "#a64d79"}  # fmt: skip


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """A PNG of the entries that have numbers. Raises OstrainError without matplotlib or without any number."""
    try:
        import matplotlib
    except ImportError as error:
        raise OstrainError(
            "the picture of the benchmark needs matplotlib", next_step="pip install 'ostrain[report]'", exit_code=1
        ) from error
    measured = [row for row in rows if row.seconds is not None]
    if not measured:
        raise OstrainError("no entry has numbers to draw", exit_code=1)
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    told = any(row.comm for row in measured)
    height = 1.5 + 0.42 * len(measured)
    figure, grid = plt.subplots(2, 2, figsize=(12, 2 * height), dpi=110, sharey=True)
    _seconds(grid[0][0], measured)
    _throughput(grid[0][1], measured)
    _memory(grid[1][0], measured)
    _comm(grid[1][1], measured, told)
    for axes in grid.flat:
        axes.set_yticks(range(len(measured)), [f"{row.label}\n({row.layout_text})" for row in measured], fontsize=8)
        axes.set_ylim(len(measured) - 0.4, -0.6)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=12)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def _bars(axes: Any, rows: Sequence[Row], values: Sequence[float], words: Sequence[str], color: str) -> None:
    """Bars with words at their ends, and room for the words."""
    axes.barh(range(len(rows)), values, color=color, height=0.6)
    for place, (value, word) in enumerate(zip(values, words, strict=True)):
        axes.annotate(word, (value, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_xlim(0, max(*values, 1e-12, 0.0) * 1.35)


def _seconds(axes: Any, rows: Sequence[Row]) -> None:
    values = [row.seconds or 0.0 for row in rows]
    axes.barh(range(len(rows)), values, color=_BLUE, height=0.6)
    low = [value - (row.seconds_low or value) for row, value in zip(rows, values, strict=True)]
    high = [(row.seconds_high or value) - value for row, value in zip(rows, values, strict=True)]
    axes.errorbar(values, range(len(rows)), xerr=[low, high], fmt="none", ecolor=_ORANGE, capsize=3, linewidth=1.5)
    most = max((row.seconds_high or 0.0) for row in rows)
    for place, row in enumerate(rows):
        word = seconds_text(row.seconds)
        if row.change is not None:
            word += f"  ({'~' if row.change.within_spread else ''}{share_text(row.change.seconds, sign=True)})"
            before = (row.seconds or 0.0) / (1 + row.change.seconds)
            axes.plot([before, before], [place - 0.3, place + 0.3], color=_GREY, linewidth=2)
            most = max(most, before)
        at = (max(row.seconds_high or 0.0, row.seconds or 0.0), place)
        axes.annotate(word, at, xytext=(6, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_xlim(0, most * 1.35)
    last = "; grey: the last time" if any(row.change for row in rows) else ""
    axes.set_title(f"seconds per step (median, quartiles{last})", fontsize=10)


def _throughput(axes: Any, rows: Sequence[Row]) -> None:
    values = [row.tokens_per_s or 0.0 for row in rows]
    words = [f"{value:,.0f}" + (f"  ({share_text(row.efficiency)})" if row.efficiency is not None else "")
             for row, value in zip(rows, values, strict=True)]  # fmt: skip
    _bars(axes, rows, values, words, _BLUE)
    axes.set_title("tokens per second (scaling efficiency)", fontsize=10)


def _memory(axes: Any, rows: Sequence[Row]) -> None:
    values = [(row.memory or 0) / 2**20 for row in rows]
    _bars(axes, rows, values, [bytes_text(row.memory) for row in rows], _PALE)
    axes.set_title("peak memory of a worker, MB (the one that needs most)", fontsize=10)


def _comm(axes: Any, rows: Sequence[Row], told: bool) -> None:
    axes.set_title("sent by a rank in a step, MB (mean), by collective", fontsize=10)
    if not told:
        axes.text(0.5, 0.5, "the payload did not count its communication", transform=axes.transAxes, ha="center")
        return
    names = list(dict.fromkeys(name for row in rows for name in row.comm or {}))
    left = [0.0] * len(rows)
    for name in names:
        sizes = [(row.comm or {}).get(name, [0.0, 0.0])[1] / 2**20 for row in rows]
        axes.barh(range(len(rows)), sizes, left=left, height=0.6, color=_COMM.get(name, _GREY),
                  label=name.replace("_", "-"))  # fmt: skip
        left = [start + size for start, size in zip(left, sizes, strict=True)]
    for place, (row, end) in enumerate(zip(rows, left, strict=True)):
        word = bytes_text(end * 2**20) if row.comm is not None else "unknown"
        axes.annotate(word, (end, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_xlim(0, max(*left, 1e-12, 0.0) * 1.35)
    if any(left):
        axes.legend(fontsize=7, loc="lower right")

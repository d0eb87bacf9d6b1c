"""One row of numbers an entry: from its runs, against the baseline, against the last time."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ostrain.bench.measure import Measured, quartiles


@dataclass(frozen=True)
class Change:
    """Against the last time the same entry was measured: ratios minus one, so 0.1 is 10 % more.

    within_spread: the change of the seconds is smaller than the spread (quartiles) of either measurement.
    """

    since: float
    code: str
    seconds: float
    memory: float | None
    comm: float | None
    compile_seconds: float | None
    within_spread: bool


@dataclass(frozen=True)
class Row:
    """An entry of the report. Seconds in s, memory and comm (sent) in bytes, per step where they are of a step.

    state: done, failed, or waiting (never run). speedup: tokens per second as a multiple of the baseline's;
    efficiency: that over the multiple of workers. data_wait_share: of the step. published: seconds of somebody else.
    """

    label: str
    state: str
    reason: str
    layout: dict[str, Any]
    workers: int
    nodes: int
    config: str
    runs: int = 0
    counted: int = 0
    samples: float | None = None
    shapes: tuple[str, ...] = ()
    seconds: float | None = None
    seconds_low: float | None = None
    seconds_high: float | None = None
    seconds_least: float | None = None
    seconds_most: float | None = None
    seconds_mean: float | None = None
    tokens_per_s: float | None = None
    compile_seconds: float | None = None
    compile_told: bool = False
    memory: int | None = None
    memory_least: int | None = None
    comm: dict[str, list[float]] | None = None
    comm_most: float | None = None
    comm_total: float | None = None
    data_wait: float | None = None
    data_wait_share: float | None = None
    speedup: float | None = None
    efficiency: float | None = None
    published: float | None = None
    change: Change | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def of_published(self) -> float | None:
        """Our seconds as a multiple of the published ones; of steps of several shapes the mean says more."""
        ours = self.seconds if len(self.shapes) <= 1 else self.seconds_mean
        return ours / self.published if ours is not None and self.published else None

    @property
    def layout_text(self) -> str:
        """``dp 2``, ``dp 4, zero 1``, ``dp 2, ulysses sp 2, zero 3``."""
        words = [f"dp {self.layout['dp']}"]
        if self.layout["sp"] > 1:
            words.append(f"{self.layout['sp_kind']} sp {self.layout['sp']}")
        if self.layout["zero"]:
            words.append(f"zero {self.layout['zero']}")
        return ", ".join(words)


def figures(runs: Sequence[Measured]) -> dict[str, Any]:
    """The numbers of a row from all runs of an entry together."""
    seconds = [value for run in runs for value in run.seconds]
    waits = [value for run in runs for value in run.data_wait]
    low, middle, high = quartiles(seconds)
    compiles = [run.compile_seconds for run in runs if run.compile_seconds is not None]
    told = runs[0].comm is not None and all(run.comm is not None for run in runs)
    return {
        "runs": len(runs),
        "counted": len(seconds),
        "samples": statistics.fmean(value for run in runs for value in run.samples),
        "shapes": tuple(sorted({shape for run in runs for shape in run.shapes})),
        "seconds": middle,
        "seconds_low": low,
        "seconds_high": high,
        "seconds_least": min(seconds),
        "seconds_most": max(seconds),
        "seconds_mean": statistics.fmean(seconds),
        "tokens_per_s": tokens_per_second(runs),
        "compile_seconds": statistics.median(compiles) if compiles else None,
        "compile_told": all(run.compile_told for run in runs),
        "memory": max(run.memory for run in runs),
        "memory_least": min(run.memory_least for run in runs),
        "comm": _mean_comm(runs) if told else None,
        "comm_most": max(run.comm_most or 0.0 for run in runs) if told else None,
        "comm_total": statistics.fmean(run.comm_total or 0.0 for run in runs) if told else None,
        "data_wait": statistics.median(waits),
        "data_wait_share": sum(waits) / sum(seconds) if sum(seconds) else None,
    }


def tokens_per_second(runs: Sequence[Measured]) -> float | None:
    """Tokens of all counted steps over their time, where a step's time is the median of its shape's."""
    by_shape: dict[str, list[tuple[float, int]]] = {}
    for run in runs:
        for shape, seconds, tokens in zip(run.shapes, run.seconds, run.tokens, strict=True):
            by_shape.setdefault(shape, []).append((seconds, tokens))
    time = sum(len(steps) * statistics.median(seconds for seconds, _ in steps) for steps in by_shape.values())
    return sum(tokens for steps in by_shape.values() for _, tokens in steps) / time if time else None


def _mean_comm(runs: Sequence[Measured]) -> dict[str, list[float]]:
    names = list(dict.fromkeys(name for run in runs for name in run.comm or {}))
    return {
        name: [statistics.fmean((run.comm or {}).get(name, [0.0, 0.0])[part] for run in runs) for part in (0, 1)]
        for name in names
    }


def against_baseline(row: dict[str, Any], baseline: Mapping[str, Any] | None) -> dict[str, Any]:
    """Speed-up and scaling efficiency of ``row`` over the baseline's (both as dictionaries of Row)."""
    if not baseline or not baseline.get("tokens_per_s") or not row.get("tokens_per_s"):
        return {}
    speedup = row["tokens_per_s"] / baseline["tokens_per_s"]
    return {"speedup": speedup, "efficiency": speedup * baseline["workers"] / row["workers"]}


def change_since(row: Mapping[str, Any], before: Mapping[str, Any], when: float, code: str) -> Change | None:
    """What changed between two rows of the same entry; None where one of them has no numbers."""
    if not row.get("seconds") or not before.get("seconds"):
        return None
    spread = max(one["seconds_high"] - one["seconds_low"] for one in (row, before))
    return Change(
        since=when,
        code=code,
        seconds=row["seconds"] / before["seconds"] - 1,
        memory=_ratio(row, before, "memory"),
        comm=_ratio(row, before, "comm_total"),
        compile_seconds=_ratio(row, before, "compile_seconds"),
        within_spread=abs(row["seconds"] - before["seconds"]) <= spread,
    )


def _ratio(row: Mapping[str, Any], before: Mapping[str, Any], key: str) -> float | None:
    if row.get(key) is None or not before.get(key):
        return None
    return float(row[key]) / float(before[key]) - 1

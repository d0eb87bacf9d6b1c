"""A benchmark in plain text: lines while it runs, tables at its end. Also the formats that pictures and pages use."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ostrain.bench.load import Bench, Case
from ostrain.bench.store import RunResult
from ostrain.bench.summary import Row, figures
from ostrain.talk import table

_UNITS = ((1 << 40, "TB"), (1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB"))


def seconds_text(value: float | None) -> str:
    """Three digits or more: ``0.0123``, ``1.23``, ``123.4``."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    digits = 1 if value >= 100 else 2 if value >= 10 else 3 if value >= 0.1 else 4
    return f"{value:.{digits}f}"


def bytes_text(value: float | None) -> str:
    """``1.5 GB`` with 1 GB = 2**30 bytes."""
    if value is None:
        return "-"
    for size, unit in _UNITS:
        if value >= size:
            return f"{value / size:.3g} {unit}" if value < 1000 * size else f"{value / size:.0f} {unit}"
    return f"{value:.0f} B"


def share_text(value: float | None, *, sign: bool = False) -> str:
    return "-" if value is None else f"{value * 100:{'+' if sign else ''}.1f} %"


def compile_text(row: Row) -> str:
    """Seconds of compilation; ``~`` where they are what the first step took more than the others.

    Such an estimate below the spread of the steps says nothing.
    """
    if row.compile_seconds is None:
        return "-"
    if row.compile_told:
        return f"{seconds_text(row.compile_seconds)} s"
    spread = (row.seconds_high or 0.0) - (row.seconds_low or 0.0)
    return f"~{seconds_text(row.compile_seconds)} s" if row.compile_seconds > spread else "-"


def change_text(row: Row) -> str:
    """Change of the seconds since the last time; ``~`` where it is less than the spread."""
    if row.change is None:
        return "-"
    return ("~" if row.change.within_spread else "") + share_text(row.change.seconds, sign=True)


def entry_line(case: Case) -> str:
    """What starts: label, layout, workers, samples."""
    layout = Row(case.label, "", "", case.plan.layout, case.plan.world, len(case.plan.nodes), "").layout_text
    nodes, workers = len(case.plan.nodes), case.plan.world
    where = f" on {nodes} nodes" if nodes > 1 else ""
    samples = f", {case.samples} samples a step" if case.samples is not None else ""
    return f"{case.label}: {workers} worker{'s' if workers > 1 else ''}{where} ({layout}){samples}"


def outcome_line(run: RunResult) -> str:
    """What came of it."""
    if run.measured is None:
        return f"{run.label} failed: {run.reason}"
    row = figures([run.measured])
    rate = row["tokens_per_s"]
    text = f"{seconds_text(row['seconds'])} s/step ({seconds_text(row['seconds_low'])} to "
    text += f"{seconds_text(row['seconds_high'])}, {row['counted']} steps)"
    text += f", {rate:,.0f} tokens/s" if rate else ""
    compiled = f", compiled in {seconds_text(row['compile_seconds'])} s" if row["compile_told"] else ""
    return f"{text}, peak {bytes_text(row['memory'])}{compiled}"


def title(bench: Bench) -> str:
    """``layouts: up to 2 workers on 1 node (CPU, local), 8 steps counted``."""
    spec, largest = bench.spec, max((case.plan for case in bench.cases), key=lambda plan: plan.world)
    workers, nodes = largest.world, len(largest.nodes)
    where = f"{workers} worker{'s' if workers > 1 else ''} on {nodes} node{'s' if nodes > 1 else ''}"
    counted = f"{spec.steps - spec.warmup} steps counted" + (
        f" in each of {spec.repeat} runs" if spec.repeat > 1 else ""
    )
    return f"{spec.name}: up to {where} ({largest.device}, {largest.backend}), {counted}"


def steps_table(rows: Sequence[Row]) -> str:
    """The main table: one line an entry."""
    changed = any(row.change for row in rows)
    published = any(row.published for row in rows)
    headers = ["ENTRY", "WORKERS", "LAYOUT", "s/STEP", "QUARTILES", "TOKENS/s", "SPEED-UP", "EFFICIENCY", "COMPILE",
               "MEMORY", "SENT/STEP", "DATA WAIT"]  # fmt: skip
    headers += ["CHANGE"] if changed else []
    headers += ["PUBLISHED"] if published else []
    lines = []
    for row in rows:
        if row.seconds is None:
            rest = len(headers) - 4
            lines.append([row.label, row.workers, row.layout_text, row.state.upper(), *["-"] * rest])
            continue
        line = [row.label, row.workers, row.layout_text, seconds_text(row.seconds)]
        line += [f"{seconds_text(row.seconds_low)}-{seconds_text(row.seconds_high)}"]
        line += [f"{row.tokens_per_s:,.0f}" if row.tokens_per_s else "-"]
        line += ["-" if row.speedup is None else f"{row.speedup:.2f}x", share_text(row.efficiency)]
        line += [compile_text(row)]
        line += [bytes_text(row.memory), bytes_text(row.comm_total), share_text(row.data_wait_share)]
        line += [change_text(row)] if changed else []
        line += [published_text(row)] if published else []
        lines.append(line)
    return table(lines, headers)


def published_text(row: Row) -> str:
    """The published seconds, and ours as a multiple of them."""
    if row.published is None:
        return "-"
    ours = f" (ours {row.of_published:.2f}x)" if row.of_published is not None else ""
    return f"{seconds_text(row.published)}{ours}"


def comm_table(rows: Sequence[Row]) -> str:
    """Calls and sent bytes of each collective, of the mean rank and step; empty where no payload told them."""
    names = list(dict.fromkeys(name for row in rows for name in row.comm or {}))
    if not names:
        return ""
    lines = []
    for row in rows:
        if row.comm is None:
            continue
        line = [row.label]
        for name in names:
            calls, size = row.comm.get(name, (0.0, 0.0))
            line.append(f"{calls:g} x, {bytes_text(size)}" if calls else "-")
        lines.append([*line, bytes_text(row.comm_most)])
    headers = ["A RANK AND STEP", *(name.replace("_", "-").upper() for name in names), "MOST OF A RANK"]
    return table(lines, headers)


def notes(rows: Sequence[Row], baseline: str) -> list[str]:
    """What a reader of the tables has to know."""
    told = []
    base = next((row for row in rows if row.label == baseline), None)
    if base is None or base.tokens_per_s is None:
        told.append(f"no speed-up and efficiency: the baseline {baseline} has no numbers here")
    else:
        told.append(f"speed-up and efficiency: tokens per second, and the same per worker, against {baseline}")
    if len({row.samples for row in rows if row.samples is not None}) > 1:
        told.append("entries differ in samples per step: compare tokens per second, not seconds per step")
    if any(compile_text(row).startswith("~") for row in rows):
        told.append("compile: ~ marks what the first step of a shape took more than its others, where none was told")
    if any(row.change for row in rows):
        since = min(row.change.since for row in rows if row.change)
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(since))
        told.append(f"change: of the seconds per step since {day}; ~ marks less than the spread of either measurement")
    told += [f"{row.label} failed: {row.reason}" for row in rows if row.state == "failed"]
    return told

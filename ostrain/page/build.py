"""The page itself: what the template gets, and the file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ostrain import __version__
from ostrain.bench.store import write_text
from ostrain.page.charts import curve, distribution, timeline
from ostrain.page.history import CURVES, History
from ostrain.page.timeline import checkpoints_of, moments_of, stretches_of
from ostrain.plan import LaunchPlan
from ostrain.report import by_step, summary
from ostrain.status import RunStatus
from ostrain.stragglers import stragglers
from ostrain.talk import age
from ostrain.templating import html
from ostrain.top.events import Told
from ostrain.top.rows import size

TITLES = {
    "loss": "Loss", "grad_norm": "Gradient norm", "lr": "Learning rate", "seconds": "Seconds a step (first rank)",
    "data_wait": "Waiting for data, seconds a step (first rank)",
}  # fmt: skip
MOST_MOMENTS = 400
MOST_CHECKPOINTS = 200
MOST_RANKS = 256
MOST_NODES = 512


def write_page(
    history: History,
    status: RunStatus,
    journal: Sequence[Told],
    versions: Mapping[str, Mapping[str, Any]],
    path: Path,
    now: float,
) -> None:
    """Write the file, whole or not at all. versions: node -> answer of its probe. OstrainError."""
    write_text(path, page(history, status, journal, versions, now))


def page(
    history: History,
    status: RunStatus,
    journal: Sequence[Told],
    versions: Mapping[str, Mapping[str, Any]],
    now: float,
) -> str:
    """The HTML text."""
    moments = moments_of(history.events, journal)
    stretches = stretches_of(history.events, now, status.state.final)
    spreads = history.spreads()
    drawn = distribution(spreads)
    checkpoints = checkpoints_of(history.events, history.statuses)
    charts = {name: picture for name in CURVES if (picture := curve(TITLES[name], history.curves[name])) is not None}
    values: dict[str, Any] = {
        "run": history.run,
        "plan": history.run.plan,
        "status": status.as_dict(),
        "facts": facts(history, status, now),
        "charts": [(TITLES[name], picture) for name, picture in charts.items()],
        "ranks": drawn[0] if drawn else None,
        "ranks_left_out": drawn[1] if drawn else 0,
        "spreads": sorted(spreads, key=lambda one: -one.median)[:MOST_RANKS],
        "stragglers": stragglers({rank: list(lines) for rank, lines in history.rows.items()}),
        "timeline": timeline(stretches, moments),
        "stretches": stretches,
        "moments": moments[-MOST_MOMENTS:],
        "moments_left_out": max(0, len(moments) - MOST_MOMENTS),
        "checkpoints": checkpoints[-MOST_CHECKPOINTS:],
        "checkpoints_left_out": max(0, len(checkpoints) - MOST_CHECKPOINTS),
        "nodes": nodes(history.run.plan, history, versions)[:MOST_NODES],
        "files": rendered_files(history.run.plan),
        "notes": notes(history),
        "version": __version__,
        "now": now,
    }
    return html("run_report.html.j2", _FILTERS, values)


def facts(history: History, status: RunStatus, now: float) -> list[tuple[str, str]]:
    """The first table."""
    plan, run = history.run.plan, history.run
    rows = [
        ("state", f"{status.state.value}: {status.reason}"),
        ("job", f"{run.job_path} ({plan.task})"),
        ("submitted", f"{_day(run.created)}, {age(now - run.created)} before this page"),
        ("attempts", str(run.attempt)),
        ("workers", f"{plan.world} on {len(plan.nodes)} nodes, {plan.launcher}, {plan.device}, backend {plan.backend}"),
        ("layout", ", ".join(f"{key} {value}" for key, value in plan.layout.items()) or "-"),
    ]
    first = history.rows.get(min(history.rows)) if history.rows else None
    if first:
        rows += summary(by_step(first))
    if status.checkpoint is not None:
        rows.append(("newest checkpoint", f"step {status.checkpoint}"))
    rows += [
        (f"secret {variable}", f"{name} (the value is nowhere in here)") for variable, name in plan.secrets.items()
    ]
    return rows


def nodes(plan: LaunchPlan, history: History, versions: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """A row a node: address, ranks, state, versions where it told them."""
    rows = []
    for node in plan.nodes:
        told = versions.get(node.name) or {}
        modules = ", ".join(f"{name} {version}" for name, version in (told.get("modules") or {}).items() if version)
        status = history.statuses.get(node.name) or {}
        rows.append(
            {
                "name": node.name,
                "address": node.address,
                "ranks": f"{node.ranks[0]}-{node.ranks[-1]}" if node.ranks else "-",
                "devices": ", ".join(map(str, node.devices)) if plan.device == "Ascend" else "CPU",
                "state": history.missing.get(node.name) or f"{status.get('state', '-')} {status.get('reason', '')}",
                "host": str(told.get("hostname") or "-"),
                "python": str((told.get("python") or {}).get("version") or "-"),
                "modules": modules or "-",
            }
        )
    return rows


def rendered_files(plan: LaunchPlan) -> list[dict[str, str]]:
    """The files of the first node as they were rendered. Secrets stand in them by name only."""
    return [{"path": file.path, "text": file.text[: 256 << 10]} for file in plan.nodes[0].files] if plan.nodes else []


def notes(history: History) -> list[str]:
    """What this page does not show."""
    lines = [f"node {node} did not answer: {why}" for node, why in history.missing.items()]
    lines += history.cut
    lines.append(
        "Long curves are thinned: every stretch keeps its least and its greatest value. Distributions are of each "
        "rank's newest steps."
    )
    return lines


def _day(value: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))


_FILTERS: dict[str, Callable[..., str]] = {
    "size": size,
    "day": _day,
    "seconds": lambda value: "-" if value is None else f"{value:.3g}",
    "share": lambda value: f"{value:.0%}",
}

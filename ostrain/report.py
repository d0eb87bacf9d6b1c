"""What a run achieved: a table of its steps and a picture of its loss."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ostrain.errors import OstrainError

WINDOW = 10


def by_step(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record a step, in order: where attempts repeat a step after a resume, the last attempt's counts."""
    latest: dict[int, dict[str, Any]] = {}
    for record in records:
        known = latest.get(record["step"])
        if known is None or record.get("attempt", 1) >= known.get("attempt", 1):
            latest[record["step"]] = record
    return [latest[step] for step in sorted(latest)]


def summary(records: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Rows (what, value) of the closing table; ``records`` one a step."""
    losses = [record["loss"] for record in records if record.get("loss") is not None]
    # The first step of each attempt compiles; the median does not care, the spread would.
    seconds = [record["seconds"] for record in records]
    rows = [
        ("steps", str(records[-1]["step"])),
        ("seconds per step (median)", f"{statistics.median(seconds):.3f}"),
    ]
    if losses:
        rows += _change(losses)
    waits = [record["data_wait"] for record in records if record.get("data_wait") is not None]
    if waits:
        rows.append(("data wait (median)", f"{statistics.median(waits):.3f} s"))
    rates = [record["tokens_per_s"] for record in records if record.get("tokens_per_s")]
    if rates:
        rows.append(("tokens per second (median)", f"{statistics.median(rates):,.0f}"))
    return rows


def _change(losses: list[float]) -> list[tuple[str, str]]:
    first, last = statistics.fmean(losses[:WINDOW]), statistics.fmean(losses[-WINDOW:])
    return [
        (f"first loss (mean of {min(WINDOW, len(losses))} steps)", f"{first:.4f}"),
        (f"last loss (mean of {min(WINDOW, len(losses))} steps)", f"{last:.4f}"),
        ("change of loss", f"{(last / first - 1) * 100:+.1f} %" if first else "-"),
    ]


def draw_loss(records: list[dict[str, Any]], title: str, path: Path) -> None:
    """A PNG of the loss of every step and its running mean."""
    try:
        import matplotlib
    except ImportError as error:
        raise OstrainError(
            "the loss curve needs matplotlib", next_step="pip install 'ostrain[report]'", exit_code=1
        ) from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [record for record in records if record.get("loss") is not None]
    steps, losses = [record["step"] for record in shown], [record["loss"] for record in shown]
    means = [statistics.fmean(losses[max(0, i - WINDOW + 1) : i + 1]) for i in range(len(losses))]
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120)
    axes.plot(steps, losses, color="#9db7d5", linewidth=1, label="loss of each step")
    axes.plot(steps, means, color="#1f4e8c", linewidth=2, label=f"mean of the last {WINDOW}")
    axes.set(xlabel="step", ylabel="loss", title=title, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)

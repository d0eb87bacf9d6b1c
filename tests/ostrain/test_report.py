"""The closing table and the picture."""

from __future__ import annotations

from pathlib import Path

from ostrain.report import by_step, draw_loss, summary


def record(step: int, loss: float, attempt: int = 1) -> dict[str, object]:
    return {"step": step, "loss": loss, "seconds": 0.5, "data_wait": 0.01, "tokens_per_s": 1000.0, "attempt": attempt}


def test_a_resumed_run_counts_each_step_once_by_its_last_attempt() -> None:
    rows = by_step([record(1, 1.0), record(2, 0.9), record(3, 0.8), record(2, 0.95, 2), record(3, 0.7, 2)])
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 0.95), (3, 0.7)]


def test_summary_means_over_ten_steps() -> None:
    rows = dict(summary([record(i + 1, 2.0 if i < 10 else 1.0) for i in range(30)]))
    assert rows["first loss (mean of 10 steps)"] == "2.0000"
    assert rows["last loss (mean of 10 steps)"] == "1.0000"
    assert rows["change of loss"] == "-50.0 %"
    assert rows["steps"] == "30"


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    draw_loss([record(i + 1, 1 / (i + 1)) for i in range(20)], "a run", tmp_path / "deep" / "loss.png")
    assert (tmp_path / "deep" / "loss.png").read_bytes().startswith(b"\x89PNG")

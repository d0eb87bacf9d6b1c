"""A benchmark over a backend that runs nothing: order, failures, interruption, resumption, history, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.backend import NodeError
from ostrain.bench.load import load_bench
from ostrain.bench.page import write_page
from ostrain.bench.picture import draw
from ostrain.bench.store import locked
from ostrain.bench.text import bytes_text, comm_table, notes, seconds_text, steps_table
from ostrain.errors import OstrainError
from ostrain.plan import LaunchPlan
from tests.ostrain.bench_helpers import FakeBackend, record, session, write_bench


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def metrics(plan: LaunchPlan, rank: int, pace: float = 1.0) -> list[dict[str, Any]]:
    """A step takes 1 s on one worker and 0.625 s on two."""
    seconds = pace * (1.0 if plan.world == 1 else 0.625)
    comm = {} if plan.world == 1 else {"all_reduce": [3, 4096]}
    return [record(step, seconds + (9.0 if step == 1 else 0.0), comm=comm) for step in range(1, plan.steps + 1)]


def test_entries_run_in_turns_and_their_runs_are_removed(tmp_path: Path) -> None:
    backend = FakeBackend(metrics)
    bench = load_bench(write_bench(tmp_path), ["repeat=2"])
    made, said = session(tmp_path, backend, bench=bench)
    made.run()
    assert backend.started == ["trial-one", "trial-two"] * 2
    assert backend.removed == backend.started
    assert made.store.all() == []
    one, two = made.rows()
    assert (one.seconds, one.runs, one.counted, one.speedup, one.efficiency) == (1.0, 2, 8, 1.0, 1.0)
    assert (two.seconds, two.speedup, two.efficiency) == (0.625, 1.6, 0.8)
    assert (one.compile_seconds, two.comm, two.comm_total) == (9.0, {"all_reduce": [3.0, 4096.0]}, 8192.0)
    assert said[0] == "[1/4] one: 1 worker (dp 1), 2 samples a step, turn 1"
    data = json.loads((tmp_path / "out/results.json").read_text())
    assert (data["complete"], data["going"], len(data["runs"]), data["code"]) == (True, None, 4, "c0de")


def test_a_failed_entry_is_a_row_with_its_reason_and_its_run_is_kept(tmp_path: Path) -> None:
    backend = FakeBackend(metrics, fail=("trial-one",))
    made, said = session(tmp_path, backend)
    made.run()
    one, two = made.rows()
    assert (one.state, one.reason) == ("failed", "worker_failed on local rank 0: it broke")
    assert (two.state, two.speedup) == ("done", None)
    assert backend.removed == ["trial-two"]
    [kept] = made.store.all()
    assert any(kept.run_id in line for line in said)
    assert not made.complete
    assert "no speed-up and efficiency: the baseline one has no numbers" in notes(made.rows(), "one")[0]
    text = steps_table(made.rows())
    assert "FAILED" in text and "0.625" in text


def test_a_run_without_metrics_has_failed(tmp_path: Path) -> None:
    made, _ = session(tmp_path, FakeBackend(lambda plan, rank: [] if rank else metrics(plan, rank)))
    made.run()
    assert [row.state for row in made.rows()] == ["done", "failed"]
    assert "no metrics of rank 1" in made.rows()[1].reason


def test_an_interrupt_ends_the_run_and_the_next_call_goes_on(tmp_path: Path) -> None:
    backend = FakeBackend(metrics, hang=("trial-two",))

    def interrupt() -> None:
        raise KeyboardInterrupt

    backend.on_hang = interrupt
    made, _ = session(tmp_path, backend)
    with pytest.raises(KeyboardInterrupt):
        made.run()
    assert len(backend.stopped) == 1
    assert backend.removed == ["trial-one", "trial-two"]
    assert made.store.all() == []
    assert [row.state for row in made.rows()] == ["done", "waiting"]
    whole = FakeBackend(metrics)
    again, said = session(tmp_path, whole)
    again.pick_up(fresh=False)
    again.run()
    assert whole.started == ["trial-two"]
    assert "reusing 1 run of an unfinished benchmark" in said[0]
    assert again.complete


@pytest.mark.parametrize("reason", ["fresh", "other code", "other configuration", "complete"])
def test_nothing_is_reused_where_it_would_mislead(tmp_path: Path, reason: str) -> None:
    made, _ = session(tmp_path, FakeBackend(metrics, fail=() if reason == "complete" else ("trial-two",)))
    made.run()
    backend = FakeBackend(metrics)
    overrides = ["job.train.seed=1"] if reason == "other configuration" else []
    bench = load_bench(tmp_path / "trial.yaml", overrides)
    again, _ = session(tmp_path, backend, bench=bench, code="new" if reason == "other code" else "c0de")
    again.pick_up(fresh=reason == "fresh")
    again.run()
    assert backend.started == ["trial-one", "trial-two"]


def test_a_run_that_a_killed_benchmark_left_is_ended(tmp_path: Path) -> None:
    backend = FakeBackend(metrics, hang=("trial-two",))

    class Killed(BaseException):
        """Stands for SIGKILL: nothing tidies up."""

    def die() -> None:
        raise Killed

    backend.on_hang = die
    made, _ = session(tmp_path, backend)
    with pytest.raises(Killed):
        made.run()
    [left] = made.store.all()
    again, said = session(tmp_path, backend)
    again.pick_up(fresh=False)
    assert left.run_id in backend.stopped
    assert again.store.all() == []
    assert left.run_id in said[0]


def test_a_run_that_is_lost_is_a_row_and_the_others_run(tmp_path: Path) -> None:
    backend = FakeBackend(metrics, hang=("trial-one",))

    def lose() -> None:
        raise NodeError("unreachable", "no answer", node="local")

    backend.on_hang = lose
    made, said = session(tmp_path, backend)
    made.run()
    one, two = made.rows()
    assert (one.state, one.reason, two.state) == ("failed", "lost: no answer", "done")
    assert len(backend.stopped) == 1
    assert "where: node local" in said[1]


def test_a_run_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FakeBackend(metrics, hang=("trial-one",))
    monkeypatch.setattr("ostrain.bench.run.open_backend", lambda plan: backend)
    made, _ = session(tmp_path, backend, bench=load_bench(write_bench(tmp_path), ["timeout=100ms"], ["one"]))
    made.run()
    [row] = made.rows()
    assert row.state == "failed" and row.reason.startswith("timeout")


def test_the_second_time_shows_the_change(tmp_path: Path) -> None:
    first, _ = session(tmp_path, FakeBackend(metrics))
    first.run()
    assert [row.change for row in first.rows()] == [None, None]
    again, _ = session(tmp_path, FakeBackend(lambda plan, rank: metrics(plan, rank, 1.25)), code="new")
    again.pick_up(fresh=False)
    again.run()
    changes = [row.change for row in again.rows()]
    assert all(change is not None for change in changes)
    assert changes[0].seconds == pytest.approx(0.25)  # type: ignore[union-attr]
    assert (changes[0].code, changes[0].within_spread) == ("c0de", False)  # type: ignore[union-attr]
    assert "+25.0 %" in steps_table(again.rows())
    other, _ = session(tmp_path, FakeBackend(metrics), bench=load_bench(tmp_path / "trial.yaml", ["steps=7"]))
    other.run()
    assert [row.change for row in other.rows()] == [None, None], "other steps are another measurement"


def test_the_report_holds_picture_tables_and_what_failed(tmp_path: Path) -> None:
    matrix = "matrix:\n  - {label: one, devices_per_node: 1, published: 0.5}\n  - {label: two}\n  - {label: '3'}\n"
    bench = load_bench(write_bench(tmp_path, matrix=matrix))
    made, _ = session(tmp_path, FakeBackend(metrics, fail=("trial-3",)), bench=bench)
    made.run()
    rows = made.rows()
    draw(rows, "trial", tmp_path / "deep" / "report.png")
    assert (tmp_path / "deep" / "report.png").read_bytes().startswith(b"\x89PNG")
    head = {**made.describe(), "file": "<b>&.yaml"}
    write_page(head, rows, tmp_path / "deep" / "report.png", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "data:image/png;base64,iVBOR" in page
    assert "&lt;b&gt;&amp;.yaml" in page and "<b>&" not in page
    assert "failed: worker_failed on local rank 0: it broke" in page
    assert "all-reduce calls" in page and "4,096" in page
    assert "0.500 (ours 2.00x)" in page
    write_page(head, rows, None, tmp_path / "bare.html")
    assert "<img" not in (tmp_path / "bare.html").read_text()
    with pytest.raises(OstrainError, match="no entry has numbers"):
        draw([rows[2]], "trial", tmp_path / "none.png")


def test_tables(tmp_path: Path) -> None:
    made, _ = session(tmp_path, FakeBackend(metrics))
    made.run()
    lines = steps_table(made.rows()).splitlines()
    assert lines[1].split()[:4] == ["one", "1", "dp", "1"]
    assert "160" in lines[2] and "80.0 %" in lines[2] and "8 kB" in lines[2]
    assert "PUBLISHED" not in lines[0] and "CHANGE" not in lines[0]
    assert "3 x, 4 kB" in comm_table(made.rows())
    quiet, _ = session(tmp_path, FakeBackend(lambda plan, rank: [record(s) for s in range(1, 7)]))
    quiet.run()
    assert comm_table(quiet.rows()) == ""


def test_two_benchmarks_do_not_write_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with locked(folder), pytest.raises(OstrainError, match="another benchmark"), locked(folder):
        pass
    with locked(tmp_path / "out"):
        assert (tmp_path / "out").is_dir()


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0"), (0.01234, "0.0123"), (0.1234, "0.123"), (12.34, "12.34"), (123.45, "123.5")],
)
def test_seconds(value: float | None, text: str) -> None:
    assert seconds_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1024, "1 kB"), (1536 << 20, "1.5 GB"), (1000 << 10, "1000 kB")],
)
def test_sizes(value: float | None, text: str) -> None:
    assert bytes_text(value) == text

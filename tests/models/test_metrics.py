"""What a worker writes about itself: lines that never mix, files that are whole, nothing that is not JSON."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from models.events import Log, Reporter
from models.files import write_atomic
from models.metrics import MetricsFile, StepMetrics, TensorBoard

REPO = Path(__file__).parents[2]


def metrics(step: int, loss: float = 1.5) -> StepMetrics:
    return StepMetrics(
        step, 9, 1, 2.0, loss, 0.5, 1e-4, 0.3, 0.01, 900.0, 4, "4x16x24", 1 << 20, 0, 0, {"all_reduce": (2, 96)}
    )


def test_metrics_are_json_lines_and_nan_is_null(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path, 3)
    file.write(metrics(1))
    file.write(metrics(2, float("nan")))
    lines = [json.loads(line) for line in (tmp_path / "metrics" / "rank-3.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [1.5, None]
    assert lines[0]["comm"] == {"all_reduce": [2, 96]}
    assert set(lines[0]) == {
        "step", "steps", "attempt", "time", "loss", "grad_norm", "lr", "seconds", "data_wait", "tokens_per_s",
        "samples", "shape", "memory", "skipped", "dropped", "comm", "comm_wait",
    }  # fmt: skip


def test_a_line_cut_short_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics" / "rank-0.jsonl"
    MetricsFile(tmp_path, 0).write(metrics(1))
    with path.open("ab") as file:
        file.write(b'{"step": 2, "lo')
    MetricsFile(tmp_path, 0).write(metrics(2))
    lines = path.read_text().splitlines()
    assert len(lines) == 3 and json.loads(lines[2])["step"] == 2


def test_log_lines_have_utc_milliseconds_and_level() -> None:
    stream = io.StringIO()
    log = Log(stream)
    log.info("one\ntwo")
    log.error("three")
    pattern = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO|ERROR) \w+"
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3 and all(re.fullmatch(pattern, line) for line in lines)


def test_events_say_who_and_when(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSTRAIN_NODE", "node-7")
    monkeypatch.setenv("OSTRAIN_ATTEMPT", "3")
    Reporter(tmp_path, 2).event("clip_skipped", path="/ü b.mp4", reason="x\ny")
    event = json.loads((tmp_path / "events.jsonl").read_text())
    assert event.pop("time") > 1e9
    assert event == {
        "node": "node-7", "attempt": 3, "event": "clip_skipped", "rank": 2, "path": "/ü b.mp4", "reason": "x\ny",
    }  # fmt: skip


def test_events_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from models.events import Reporter\n"
        "r = Reporter(Path(sys.argv[1]), int(sys.argv[2]))\n"
        "for n in range(50): r.event('x', n=n, text='y' * 3000)"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(n)], cwd=REPO) for n in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert sorted((event["rank"], event["n"]) for event in events) == [(r, n) for r in range(3) for n in range(50)]


def test_heartbeat_is_replaced_as_a_whole(tmp_path: Path) -> None:
    report = Reporter(tmp_path, 0)
    report.heartbeat(3, "step")
    report.heartbeat(4, "saving")
    assert sorted(path.name for path in (tmp_path / "heartbeat").iterdir()) == ["rank-0"]
    beat = json.loads((tmp_path / "heartbeat" / "rank-0").read_text())
    assert (beat["step"], beat["phase"]) == (4, "saving")


def test_atomic_write_keeps_the_old_file_on_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with pytest.raises(TypeError):
        write_atomic(path, "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_tensorboard_files(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, 0)
    board.write(metrics(1))
    board.close()
    assert (next((tmp_path / "tensorboard").glob("events.*"))).stat().st_size > 100

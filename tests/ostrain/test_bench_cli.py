"""The command: exit codes, what goes to standard output, where files lie."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ostrain.cli.bench import bench
from ostrain.cli.schema import schema
from ostrain.plan import LaunchPlan
from tests.ostrain.bench_helpers import FakeBackend, record, write_bench


def metrics(plan: LaunchPlan, rank: int) -> list[dict[str, Any]]:
    return [record(step) for step in range(1, plan.steps + 1)]


@pytest.fixture(autouse=True)
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    made = FakeBackend(metrics)

    @contextmanager
    def opened(_: LaunchPlan) -> Iterator[Any]:
        yield made

    monkeypatch.setattr("ostrain.cli.bench.opened_backend", opened)
    monkeypatch.setattr("cluster.bundle.build_bundle", lambda: tmp_path / "trial.yaml")
    for name in ("STATE", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    return made


def invoke(folder: Path, *words: str) -> Result:
    path = write_bench(folder)
    return CliRunner().invoke(bench, [str(path), *words], standalone_mode=False)


def test_tables_and_files(tmp_path: Path) -> None:
    done = invoke(tmp_path)
    assert (done.exception, done.return_value) == (None, 0)
    assert done.stdout.lstrip().startswith("ENTRY")
    assert "[1/2] one: 1 worker (dp 1)" in done.stderr
    folder = tmp_path / "STATE" / "ostrain" / "bench" / "trial"
    assert {path.name for path in folder.iterdir()} == {".lock", "results.json", "report.png", "report.html"}
    assert "CHANGE" in invoke(tmp_path, "--only", "two").stdout


def test_json_alone_on_standard_output(tmp_path: Path) -> None:
    told = json.loads(invoke(tmp_path, "--json", "--out", str(tmp_path / "out"), "--repeat", "2").stdout)
    assert (told["repeat"], [row["runs"] for row in told["rows"]]) == (2, [2, 2])
    assert (tmp_path / "out" / "results.json").is_file()


def test_a_failed_entry_is_exit_code_1(tmp_path: Path, backend: FakeBackend) -> None:
    backend.fail = ("trial-two",)
    done = invoke(tmp_path)
    assert done.return_value == 1
    assert "two failed: worker_failed on local rank 0: it broke" in done.stdout
    backend.fail = ("trial-one", "trial-two")
    assert invoke(tmp_path, "--fresh").return_value == 1


def test_an_interrupt_is_exit_code_130_and_leaves_what_was_measured(tmp_path: Path, backend: FakeBackend) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    backend.hang, backend.on_hang = ("trial-two",), interrupt
    done = invoke(tmp_path)
    assert done.return_value == 130
    assert "one" in done.stdout and "WAITING" in done.stdout
    assert "goes on with what is missing" in done.stderr


def test_a_dry_run_starts_nothing(tmp_path: Path, backend: FakeBackend) -> None:
    done = invoke(tmp_path, "--dry-run", "--repeat", "3")
    assert done.return_value == 0 and backend.started == []
    assert done.stdout.splitlines() == [
        "one: 1 worker (dp 1), 2 samples a step",
        "two: 2 workers (dp 2), 4 samples a step",
    ]
    assert "6 runs of 6 steps" in done.stderr
    listed = json.loads(invoke(tmp_path, "--dry-run", "--json").stdout)
    assert [(one["label"], one["layout"]["dp"]) for one in listed] == [("one", 1), ("two", 2)]


def test_without_matplotlib_the_page_is_still_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    done = invoke(tmp_path, "--out", str(tmp_path / "out"))
    assert done.return_value == 0
    assert "pip install 'ostrain[report]'" in done.stderr
    assert not (tmp_path / "out" / "report.png").exists()
    assert "<table>" in (tmp_path / "out" / "report.html").read_text()


def test_the_schema_describes_every_key() -> None:
    told = json.loads(CliRunner().invoke(schema, ["--bench"], standalone_mode=False).output)
    assert told["required"] == ["name", "matrix"]
    text = (Path(__file__).parents[2] / "docs/bench.md").read_text(encoding="utf-8")
    for part in (told, told["$defs"]["EntrySpec"]):
        for key, described in part["properties"].items():
            assert described.get("description"), key
            assert f"`{key}`" in text, f"docs/bench.md does not explain `{key}`"

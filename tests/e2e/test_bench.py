"""``ostrain bench`` on two real nodes: layouts measured, one that fails among them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ROOT, Cli
from tests.testbed import Testbed

pytestmark = [pytest.mark.train, pytest.mark.nodes]

BENCH = """name: trial
base: quickstart
job:
  cluster: bed.yaml
  nodes: 2
  devices_per_node: 1
  train:
    model: {hidden_size: 32, depth: 1, num_heads: 2}
    data: {image_size: [16, 24], num_frames: 4}
    jit: "off"
steps: 6
warmup: 2
global_batch: 4
baseline: single
matrix:
  - {label: single, nodes: 1}
  - {label: dp}
  - {label: broken, train: {data: {annotations: files/clips/none.csv}}}
"""


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Cli]:
    with Testbed(2) as bed:
        (tmp_path / "bed.yaml").write_text(bed.inventory())
        (tmp_path / "trial.yaml").write_text(BENCH)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, **bed.environment(), "PYTHONPATH": str(ROOT), "PATH": path, "LC_ALL": "C.UTF-8"}
        made = Cli(environment, tmp_path, pause=1.0)
        yield made
        made.stop_children()
        for row in json.loads(made("ps", "--all", "--json").stdout):
            made("rm", "--yes", row["run_id"])
        for node in bed.nodes:
            listing = node.exec(["ps", "-eo", "args"], as_root=True).stdout.decode()
            assert "models.train" not in listing, "a benchmark left processes on the nodes"


def test_two_nodes_are_measured_and_reported(remote: Cli) -> None:
    done = remote("bench", "trial.yaml", "--out", "out", "--json", code=1, timeout=300)
    told = json.loads(done.stdout)
    rows: dict[str, dict[str, Any]] = {row["label"]: row for row in told["rows"]}
    assert [row["state"] for row in told["rows"]] == ["done", "done", "failed"]
    assert (rows["single"]["workers"], rows["dp"]["workers"], rows["dp"]["nodes"]) == (1, 2, 2)
    for label in ("single", "dp"):
        row = rows[label]
        assert (row["counted"], row["samples"]) == (4, 4.0)
        assert 0 < row["seconds_low"] <= row["seconds"] <= row["seconds_high"] < 60
        assert row["memory"] > 100 << 20
        assert row["tokens_per_s"] > 0
    assert rows["dp"]["efficiency"] == pytest.approx(rows["dp"]["speedup"] / 2)
    assert "none.csv" in rows["broken"]["reason"] and "bad_data" in rows["broken"]["reason"]
    out = remote.folder / "out"
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/png;base64" in (out / "report.html").read_text()
    assert json.loads((out / "results.json").read_text())["rows"] == told["rows"]
    [kept] = json.loads(remote("ps", "--json").stdout)
    assert kept["name"] == "trial-broken", "runs that succeeded are removed, the failed one stays as evidence"

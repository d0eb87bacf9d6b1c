"""A training through msrun and mpirun, on this machine and on two nodes over SSH: the same losses, bit for bit."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, SMALL, Cli, losses, run_dir
from tests.testbed import Testbed

pytestmark = [pytest.mark.train, pytest.mark.nodes]

# Sums of as many threads everywhere, so that the losses can be equal to the last bit.
SETTINGS = (*SMALL, "train.steps=4", "train.checkpoint.every=4", "env.OMP_NUM_THREADS='1'")


def trained(cli: Cli, *settings: str, folders: Callable[[str], list[Path]]) -> list[Path]:
    """Submit and wait until every node has ended well, by its own file: asking costs the cores. Run directories."""
    found = folders(cli.submit(*SETTINGS, *settings, small=False))
    end = time.monotonic() + 120
    for folder in found:
        while (state := json.loads((folder / "agent/state.json").read_text()))["state"] == "RUNNING":
            assert time.monotonic() < end, state
            time.sleep(0.2)
        assert state["state"] == "SUCCEEDED", state
    return found


def test_a_training_is_the_same_under_every_launcher(cli: Cli, tmp_path: Path) -> None:
    def here(run: str) -> list[Path]:
        return [run_dir(cli, run)]

    wanted = losses(trained(cli, folders=here)[0])
    assert sorted(wanted) == [1, 2, 3, 4]
    (folder,) = trained(cli, "launcher=mpirun", folders=here)
    assert losses(folder) == wanted
    assert {path.name for path in (folder / "logs/attempt-1").glob("[sw]*.log")} == {
        "scheduler.log", "worker_0.log", "worker_1.log"
    }  # fmt: skip
    assert {path.stem for path in (folder / "workers/attempt-1").glob("*.json")} == {"rank-0", "rank-1", "scheduler"}
    with Testbed(2) as bed:
        (tmp_path / "bed.yaml").write_text(bed.inventory())
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        remote = Cli({**os.environ, **bed.environment(), "PYTHONPATH": str(ROOT), "PATH": path}, tmp_path)
        try:
            placed = (f"cluster={tmp_path}/bed.yaml", "nodes=2", "devices_per_node=1")
            homes = trained(
                remote, "launcher=mpirun", *placed,
                folders=lambda run: [node.home / ".ostrain/runs" / run / node.name for node in bed.nodes],
            )  # fmt: skip
        finally:
            remote.stop_children()
        assert losses(homes[0]) == wanted
        assert [sorted(path.stem for path in home.glob("workers/attempt-1/*.json")) for home in homes] == [
            ["rank-0", "scheduler"], ["rank-1"]
        ]  # fmt: skip
        record = json.loads((homes[1] / "workers/attempt-1/rank-1.json").read_text())
        assert (record["rank"], record["exit_code"]) == (1, 0)

"""A training through msrun and mpirun, on this machine and on two nodes over SSH: the same losses, bit for bit."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import QUICKSTART, ROOT, SMALL, Cli, losses, run_dir
from tests.testbed import Testbed

pytestmark = [pytest.mark.train, pytest.mark.nodes]

# Sums of as many threads everywhere, so that the losses can be equal to the last bit.
SETTINGS = (*SMALL, "train.steps=4", "train.checkpoint.every=4", "env.OMP_NUM_THREADS='1'")


def trained(cli: Cli, *settings: str) -> str:
    """Submit, follow to the end; the run's id."""
    words = [word for one in (*SETTINGS, *settings) for word in ("--set", one)]
    return cli("submit", str(QUICKSTART), "--follow", *words).stdout.splitlines()[0]


def test_a_training_is_the_same_under_every_launcher(cli: Cli, tmp_path: Path) -> None:
    wanted = losses(run_dir(cli, trained(cli)))
    assert sorted(wanted) == [1, 2, 3, 4]
    run = trained(cli, "launcher=mpirun")
    folder = run_dir(cli, run)
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
            run = trained(remote, "launcher=mpirun", *placed)
        finally:
            remote.stop_children()
        homes = [node.home / ".ostrain/runs" / run / node.name for node in bed.nodes]
        assert losses(homes[0]) == wanted
        assert [sorted(path.stem for path in home.glob("workers/attempt-1/*.json")) for home in homes] == [
            ["rank-0", "scheduler"], ["rank-1"]
        ]  # fmt: skip
        record = json.loads((homes[1] / "workers/attempt-1/rank-1.json").read_text())
        assert (record["rank"], record["exit_code"]) == (1, 0)

"""A real training whose rank 1 is stopped: named by `ostrain stuck`, every rank's stack read while it trains."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.e2e.conftest import Cli, run_dir, step_of, worker_pid

pytestmark = pytest.mark.train


@pytest.mark.long
def test_a_stopped_rank_of_a_real_training_is_named(cli: Cli) -> None:
    run = cli.submit("train.steps=500", "devices_per_node=2", "train.checkpoint.every=500")
    told = cli.wait(run, lambda told: step_of(told) >= 3)
    report = json.loads(cli("stuck", run, "--json").stdout)
    assert all("models/trainer.py" in one["stack"] for one in report["ranks"]), "both answer from inside their step"

    os.kill(worker_pid(told, 1), signal.SIGSTOP)
    cli.wait(run, lambda _: True)
    report = json.loads(cli("stuck", run, "--json").stdout)
    assert (report["suspect"]["rank"], report["suspect"]["why"]) == (1, "its process is stopped (SIGSTOP)")
    os.kill(worker_pid(told, 1), signal.SIGCONT)

    rows = [json.loads(line) for line in (run_dir(cli, run) / "metrics/rank-1.jsonl").read_text().splitlines()]
    assert all(0.0 <= row["comm_wait"] <= row["seconds"] for row in rows)
    cli("cancel", run)
    assert "no fault: the run was cancelled" in cli("why", run).stdout

"""The real msrun under the agent: what it orphans, hides and lies about does not matter any more."""

from __future__ import annotations

import json
import os
import signal

import pytest

from cluster.backend import RunRef
from tests.cluster.conftest import LocalSite, environ_tags
from tests.cluster.toys import good, launch, wait_ready, wait_state

pytestmark = pytest.mark.train

MSRUN = (
    "exec msrun --worker_num=2 --local_worker_num=2 --master_port=$OSTRAIN_MASTER_PORT"
    ' --log_dir="$OSTRAIN_LOG_DIR" --join=True "$OSTRAIN_AGENT" worker -- python worker.py'
)


def started(site: LocalSite, name: str) -> tuple[RunRef, int]:
    """A run under msrun whose workers are up, and msrun's pid."""
    run = site.run(ranks=(0, 1), launch=MSRUN, name=name)
    launch(site.backend, run, site.bundle())
    wait_ready(site.backend, run, bound=120)
    state = json.loads((site.run_dir(run) / "agent/state.json").read_text())
    return run, int(state["launcher"]["pid"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_msrun_orphans_nobody(site: LocalSite, number: signal.Signals) -> None:
    run, msrun = started(site, "msrun-1")
    os.kill(msrun, number)
    status = wait_state(site.backend, run, "FAILED", bound=15)
    assert status["reason"] in ("launcher_killed", "launcher_failed", "worker_killed")
    assert environ_tags("OSTRAIN_RUN=msrun-1") == []


def test_cancel_under_msrun(site: LocalSite) -> None:
    run, _ = started(site, "msrun-2")
    report = good(site.backend.stop(run, grace=2.0))["node-0"]
    assert (report["survivors"], report["state"]) == ([], "CANCELLED")
    assert {0, 1} <= {entry["rank"] for entry in report["killed"]}
    assert environ_tags("OSTRAIN_RUN=msrun-2") == []

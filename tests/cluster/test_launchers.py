"""mpirun and rank-table starts under the agent: every worker recorded, the odd one named, nobody left behind."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.backend import RunRef
from ostrain.plan import LaunchPlan
from tests.cluster.conftest import LocalSite, environ_tags
from tests.cluster.toys import SLEEPER, good, launch, wait_ready, wait_state, wait_until
from tests.ostrain.spec_helpers import compiled, write_job

LAUNCHERS = pytest.mark.parametrize("launcher", ["mpirun", "rank_table"])


def local_plan(folder: Path, launcher: str) -> LaunchPlan:
    """Two workers on this machine's CPU, in the folder's own root."""
    _, plan = compiled(write_job(folder, f"launcher: {launcher}\n"))
    (node,) = plan.nodes
    return replace(plan, nodes=(replace(node, access=replace(node.access, root=str(folder / "root"))),))


@pytest.fixture
def started(site: LocalSite, launcher: str) -> Iterator[RunRef]:
    """A run whose two workers are up."""
    run = RunRef(f"run-{launcher}", local_plan(site.folder, launcher))
    site.runs.append(run)
    bundle = site.bundle()
    (site.folder / "models/train.py").write_text(SLEEPER)
    launch(site.backend, run, repacked(site.folder, bundle))
    wait_ready(site.backend, run, bound=60)
    yield run
    assert environ_tags(f"OSTRAIN_RUN={run.run_id}") == []


def repacked(folder: Path, bundle: Path) -> Path:
    """The toy bundle with what was put into ``models`` since."""
    from cluster.bundle import AGENT, pack

    with open(bundle, "wb") as file:
        pack([("models", folder / "models"), ("agent.py", AGENT)], file)
    return bundle


def records(site: LocalSite, run: RunRef) -> dict[str, dict[str, Any]]:
    folder = site.root / "runs" / run.run_id / "local" / "workers" / "attempt-1"
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


@LAUNCHERS
def test_cancel_ends_every_worker_and_says_which(site: LocalSite, started: RunRef, launcher: str) -> None:
    known = {"rank-0", "rank-1"} | ({"scheduler"} if launcher == "mpirun" else set())
    assert set(records(site, started)) == known
    report = good(site.backend.stop(started, grace=2.0))["local"]
    assert (report["survivors"], report["state"]) == ([], "CANCELLED")
    assert {0, 1} <= {entry["rank"] for entry in report["killed"]}


@LAUNCHERS
@pytest.mark.parametrize("which", ["pid", "wrapper_pid"])
def test_a_killed_worker_or_wrapper_is_the_one_named(
    site: LocalSite, started: RunRef, launcher: str, which: str
) -> None:
    os.kill(records(site, started)["rank-1"][which], signal.SIGKILL)
    status = wait_state(site.backend, started, "FAILED", bound=20)
    fault = status["fault"]
    assert (status["reason"], fault["rank"], fault["signal"]) == ("worker_killed", 1, "SIGKILL")
    assert fault["log"] == "logs/attempt-1/worker_1.log" and fault["tail"] == ["ready"]


@LAUNCHERS
def test_a_killed_launcher_leaves_nobody_behind(site: LocalSite, started: RunRef, launcher: str) -> None:
    state = json.loads((site.root / "runs" / started.run_id / "local" / "agent/state.json").read_text())
    os.kill(state["launcher"]["pid"], signal.SIGKILL)
    status = wait_state(site.backend, started, "FAILED", bound=20)
    assert status["reason"] == "launcher_killed"
    wait_until(lambda: environ_tags(f"OSTRAIN_RUN={started.run_id}") == [], 10)

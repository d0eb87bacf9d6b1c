"""One status out of many nodes' answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.backend import NodeError
from ostrain.states import EXIT_MEANINGS, REASONS, WORKER_EXITS, ExitCode, State, exits_table, reasons_table
from ostrain.status import RunStatus, derive
from ostrain.store import Run, Store
from tests.ostrain.test_store import plan

NOW = 1000.0


@pytest.fixture
def run(tmp_path: Path) -> Run:
    store = Store(tmp_path / "runs.db")
    made = store.add(plan(nodes=2), "", "")
    return store.release(made.run_id, State.RUNNING, "running")


def answer(state: str, *, reason: str = "running", attempt: int = 1, **more: Any) -> dict[str, Any]:
    base = {"state": state, "reason": reason, "attempt": attempt, "time": NOW, "fault": None, "progress": None}
    return {**base, "checkpoints": [], "workers": [], "heartbeat": {}, **more}


def fault(time: float, rank: int, reason: str = "worker_killed") -> dict[str, Any]:
    return {"time": time, "rank": rank, "reason": reason, "signal": "SIGKILL", "exit_code": None}


def test_all_succeeded(run: Run) -> None:
    told = derive(run, {"n0": answer("SUCCEEDED"), "n1": answer("SUCCEEDED")}, NOW)
    assert (told.state, told.reason, told.settled, told.exit_code) == (State.SUCCEEDED, "done", True, 0)


def test_one_still_runs(run: Run) -> None:
    told = derive(run, {"n0": answer("SUCCEEDED"), "n1": answer("RUNNING")}, NOW)
    assert (told.state, told.settled) == (State.RUNNING, False)


def test_the_first_fault_is_the_earliest_on_one_clock(run: Run) -> None:
    # n1's clock is 60 s ahead: its fault at 1050 happened at 990 of ours, before n0's at 995.
    nodes = {
        "n0": answer("FAILED", reason="launcher_failed", fault=fault(995.0, 0, "launcher_failed")),
        "n1": answer("FAILED", reason="worker_killed", fault=fault(1050.0, 3), time=NOW + 60),
    }
    told = derive(run, nodes, NOW)
    assert told.fault is not None
    assert (told.fault["node"], told.fault["rank"], told.fault["time"]) == ("n1", 3, 990.0)
    assert (told.state, told.reason, told.settled, told.exit_code) == (State.FAILED, "worker_killed", True, 1)


def test_failed_while_the_other_still_runs_is_not_settled(run: Run) -> None:
    told = derive(
        run, {"n0": answer("FAILED", reason="disk_full", fault=fault(1, 0, "disk_full")), "n1": answer("RUNNING")}, NOW
    )
    assert (told.state, told.reason, told.settled) == (State.FAILED, "disk_full", False)


def test_an_unreachable_node_changes_no_state_and_is_named(run: Run) -> None:
    dead = NodeError("unreachable", "no route to host", node="n1")
    told = derive(run, {"n0": answer("RUNNING"), "n1": dead}, NOW)
    assert (told.state, told.unreachable) == (State.RUNNING, {"n1": "no route to host"})
    told = derive(run, {"n0": dead, "n1": dead}, NOW)
    assert told.state is State.RUNNING, "what was known stays"


def test_answers_about_an_earlier_attempt_do_not_count(run: Run) -> None:
    from dataclasses import replace

    second = replace(run, attempt=2)
    told = derive(
        second, {"n0": answer("FAILED", reason="disk_full", attempt=1), "n1": answer("RUNNING", attempt=2)}, NOW
    )
    assert told.state is not State.SUCCEEDED
    assert told.reason != "disk_full"


def test_a_start_that_nobody_finishes_has_failed(tmp_path: Path) -> None:
    from dataclasses import replace

    made = Store(tmp_path / "s.db").add(plan(nodes=2), "", "")
    none = {"n0": answer("NONE", attempt=0), "n1": answer("NONE", attempt=0)}
    assert derive(made, none, NOW).state is State.PREPARING, "its client is alive"
    gone = NodeError("no_run", "no run here", node="n1")
    assert derive(made, {"n0": gone, "n1": gone}, NOW).state is State.PREPARING
    orphan = replace(made, owner="1:1")
    assert derive(orphan, {"n0": gone, "n1": gone}, NOW).settled, "its files never came, or are gone"
    told = derive(orphan, none, NOW)
    assert (told.state, told.reason, told.settled) == (State.FAILED, "start_failed", True)


def test_progress_and_checkpoint_are_the_furthest(run: Run) -> None:
    told = derive(
        run,
        {
            "n0": answer("RUNNING", progress={"step": 7, "loss": 0.5, "seconds": 1.0}, checkpoints=[2, 4]),
            "n1": answer("RUNNING", progress={"step": 6, "loss": 0.6, "seconds": 1.0}),
        },
        NOW,
    )
    assert told.progress == {"step": 7, "loss": 0.5, "seconds": 1.0}
    assert told.checkpoint == 4


def test_a_stored_status_reads_back(run: Run, tmp_path: Path) -> None:
    told = derive(
        run, {"n0": answer("FAILED", reason="bad_data", fault=fault(5, 0, "bad_data")), "n1": answer("FAILED")}, NOW
    )
    store = Store(tmp_path / "runs.db")
    stored = store.record(run, told.state, told.reason, told.settled, told.as_dict())
    assert RunStatus.from_run(stored) == told


def test_the_document_shows_the_tables_of_the_code() -> None:
    text = (Path(__file__).parents[2] / "docs" / "runs.md").read_text()
    assert reasons_table() in text
    assert exits_table() in text
    assert set(EXIT_MEANINGS) == set(ExitCode)


def test_payload_and_control_plane_agree_on_worker_exits() -> None:
    from models.exits import KINDS

    assert KINDS == WORKER_EXITS
    assert set(WORKER_EXITS.values()) <= set(REASONS)

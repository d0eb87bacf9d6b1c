"""The run store: finding, claiming, and what a killed client leaves."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ostrain.errors import OstrainError
from ostrain.plan import LaunchPlan, NodeAccess, NodePlan
from ostrain.states import State
from ostrain.store import Store, owner_alive, process_identity


def plan(name: str = "tiny", nodes: int = 1) -> LaunchPlan:
    parts = tuple(
        NodePlan(f"n{i}", i, NodeAccess(f"10.0.0.{i + 1}"), f"10.0.0.{i + 1}", (i,), (0,), ("bash", "launch.sh"), ())
        for i in range(nodes)
    )
    return LaunchPlan(name, "local", "msrun", "CPU", {}, nodes, "127.0.0.1", 0, 10, parts)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "weird ' name" / "runs.db")


def test_a_run_comes_back_as_it_went_in(store: Store) -> None:
    run = store.add(plan(nodes=3), "jobs/a b.yaml", "/bundle")
    again = store.get(run.run_id)
    assert again == run
    assert again.plan == plan(nodes=3)
    assert (again.state, again.attempt, again.settled) == (State.PREPARING, 1, False)


def test_finding_by_id_prefix_name_and_last(store: Store) -> None:
    first, second = store.add(plan("a"), "", ""), store.add(plan("a"), "", "")
    other = store.add(plan("other"), "", "")
    assert store.find(first.run_id) == first
    assert store.find("a") == second, "a name means its newest run"
    assert store.find(other.run_id[:-2]) == other
    assert store.find("last") == other
    with pytest.raises(OstrainError, match="start of 2 runs"):
        store.find("a-")
    with pytest.raises(OstrainError, match="there is no run 'nope'"):
        store.find("nope")


def test_two_clients_cannot_start_the_same_attempt(store: Store) -> None:
    run = store.add(plan(), "", "")
    store.release(run.run_id, State.FAILED, "worker_failed")
    stale = store.get(run.run_id)
    claimed = store.claim(stale, 2)
    assert (claimed.attempt, claimed.state) == (2, State.PREPARING)
    with pytest.raises(OstrainError, match="another client"):
        store.claim(stale, 2)


def test_a_settled_status_is_not_overwritten_by_a_slower_client(store: Store) -> None:
    run = store.add(plan(), "", "")
    store.record(run, State.FAILED, "worker_killed", True, {"fault": {"rank": 1}})
    late = store.record(run, State.RUNNING, "running", False, {})
    assert late.state is State.FAILED
    assert late.status == {"fault": {"rank": 1}}


def test_owner_is_a_live_process_not_a_number(tmp_path: Path) -> None:
    assert owner_alive(process_identity(os.getpid()))
    assert not owner_alive("")
    pid, start = process_identity(os.getpid()).split(":")
    assert not owner_alive(f"{pid}:{int(start) + 1}"), "the same pid, another process"
    child = subprocess.Popen(["sleep", "60"])
    identity = process_identity(child.pid)
    child.kill()
    child.wait(timeout=10)
    assert not owner_alive(identity)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    Store(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(OstrainError, match="newer ostrain"):
        Store(path)


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(OstrainError) as caught:
        Store(blocker / "runs.db")
    assert str(blocker) in caught.value.where


WRITER = """
import sys
from pathlib import Path
from tests.ostrain.test_store import plan
from ostrain.states import State
from ostrain.store import Store
store = Store(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    run = store.add(plan(), "job", "bundle")
    store.record(run, State.RUNNING, "running", False, {"x": "y" * 5000})
    store.release(run.run_id, State.FAILED, "start_failed")
"""


def test_writers_killed_at_any_moment_leave_a_sound_store(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    for round_number in range(8):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(0.013 * (round_number + 1))
        writer.send_signal(signal.SIGKILL)
        writer.wait(timeout=10)
        writer.stdout.close()
        store = Store(path)
        with sqlite3.connect(path) as db:
            assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert all(run.plan == plan() for run in store.all())
        store.close()
    assert Store(path).all(), "the writers got somewhere"


def test_a_store_of_version_1_is_taken_over_with_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    made = Store(path)
    run = made.add(plan(nodes=2), "job.yaml", "/bundle")
    made.record(run, State.FAILED, "worker_killed", True, {"fault": {"rank": 1}})
    made.close()
    with sqlite3.connect(path) as db:
        for column in ("supervisor", "wanted", "supervision"):
            db.execute(f"ALTER TABLE runs DROP COLUMN {column}")
        db.execute("PRAGMA user_version = 1")
    again = Store(path).get(run.run_id)
    assert (again.state, again.status, again.plan) == (State.FAILED, {"fault": {"rank": 1}}, plan(nodes=2))
    assert (again.supervisor, again.wanted, again.supervision, again.supervised) == ("", "", {}, False)


def test_one_supervisor_at_a_time_and_the_next_one_adopts(store: Store) -> None:
    run = store.add(plan(), "", "")
    assert store.supervise(run.run_id).supervised
    store.remember(run.run_id, {"restarts": 2})
    assert store.supervise(run.run_id).supervision == {"restarts": 2}, "the same process may ask again"
    other = subprocess.Popen(["sleep", "60"])
    try:
        store._db.execute("UPDATE runs SET supervisor=?", (process_identity(other.pid),))
        with pytest.raises(OstrainError, match="supervised already"):
            store.supervise(run.run_id)
        store.let_go(run.run_id)
        assert store.get(run.run_id).supervised, "only who holds it lets it go"
    finally:
        other.kill()
        other.wait(timeout=10)
    assert store.supervise(run.run_id).supervision == {"restarts": 2}
    store.let_go(run.run_id)
    assert not store.get(run.run_id).supervised


def test_a_cancelled_run_is_not_claimed_by_its_supervisor_but_by_a_resume(store: Store) -> None:
    run = store.add(plan(), "", "")
    store.release(run.run_id, State.FAILED, "worker_killed")
    store.want(run.run_id, "cancel")
    with pytest.raises(OstrainError, match="being cancelled"):
        store.claim(store.get(run.run_id), 2, reason="recovering")
    assert store.claim(store.get(run.run_id), 2).wanted == ""

"""The supervisor on real agents and toy workers: kills, hangs, nodes that go, supervisors that die."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.backend import NodeError, RunRef
from cluster.recovery import NodeRecovery
from ostrain.lifecycle import cancel, resume
from ostrain.states import State
from ostrain.status import unsupervised
from ostrain.supervisor import fencing
from ostrain.supervisor.detach import log_path, start_detached
from tests.cluster.toys import wait_until
from tests.ostrain.supervisor.toy_site import ToySite, kill_worker, the, words

KILL = "1 1 5 os.kill(os.getpid(), 9)"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ToySite]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(fencing, "EVERY", 0.3)
    place = ToySite(tmp_path)
    yield place
    place.close()


def test_a_killed_worker_is_started_again_and_the_run_succeeds(site: ToySite) -> None:
    run = site.submit(site.plan(orders=KILL))
    told = site.supervise(run)
    assert (told.state, told.attempt, told.exit_code) == (State.SUCCEEDED, 2, 0)
    entries = site.events(run)
    fault = the(entries, "detected")
    assert (fault.node, fault.rank, fault.reason, fault.attempt) == ("n1", 1, "worker_killed", 1)
    assert fault.time - fault.more["fault_time"] < 6.0
    assert words(entries) == [
        "supervising", "detected", "stopped", "decided", "restarting", "restarted", "recovered", "ended",
    ]  # fmt: skip
    assert not site.store.get(run.run_id).supervised


def test_restarts_end_with_the_reason_of_the_last_fault(site: ToySite) -> None:
    orders = "\n".join(f"{attempt} 0 {attempt} os.kill(os.getpid(), 9)" for attempt in (1, 2))
    run = site.submit(site.plan(nodes=1, orders=orders, max=1))
    told = site.supervise(run)
    assert (told.state, told.reason, told.attempt, told.settled) == (State.FAILED, "worker_killed", 2, True)
    assert "restart.max" in the(site.events(run), "gave_up").detail
    assert told.fault is not None and told.fault["rank"] == 0
    again = resume(site.store, site.backend, site.store.get(run.run_id), secrets={}, say=lambda text: None)
    assert (site.supervise(again).state, again.attempt) == (State.SUCCEEDED, 3), "a resume has all restarts again"


def test_a_hang_is_ended_and_the_odd_rank_named(site: ToySite) -> None:
    stop = "1 1 5 os.kill(os.getpid(), 19)"
    wait = "\n".join(f"1 0 {step} time.sleep(60)" for step in (6,))  # the other one waits for it
    run = site.submit(site.plan(orders=f"{stop}\n{wait}", hang_timeout=1.5))
    told = site.supervise(run)
    assert (told.state, told.attempt) == (State.SUCCEEDED, 2)
    fault = the(site.events(run), "detected")
    assert (fault.reason, fault.node, fault.rank) == ("hung", "n1", 1)
    assert fault.time - fault.more["fault_time"] < 15.0
    assert the(site.events(run), "stuck").rank == 1


def test_devices_have_to_be_free_before_the_next_start(site: ToySite, monkeypatch: pytest.MonkeyPatch) -> None:
    held = [{"n0": ["device 0: pid 7 (python)"]}, {"n0": NodeError("unreachable", "?", node="n0")}]
    monkeypatch.setattr(NodeRecovery, "holders", lambda *_, **__: held.pop(0))
    plan = site.plan(nodes=1, orders="1 0 3 os.kill(os.getpid(), 9)")
    run = site.submit(dataclasses.replace(plan, device="Ascend", checks={"device": "CPU"}))
    assert site.supervise(run).state is State.SUCCEEDED
    assert "after 2 s" in the(site.events(run), "drained").detail and not held


def test_logs_of_a_failed_attempt_can_decide(site: ToySite) -> None:
    orders = "1 0 3 print('E: EI0004: The ranktable is invalid', flush=True); os.kill(os.getpid(), 9)"
    run = site.submit(site.plan(nodes=1, orders=orders))
    told = site.supervise(run)
    assert (told.state, told.attempt) == (State.FAILED, 1)
    assert "EI0004" in the(site.events(run), "evidence").detail
    assert "EI0004" in the(site.events(run), "gave_up").detail


def test_a_cancel_ends_the_supervision_too(site: ToySite) -> None:
    run = site.submit(site.plan(orders=KILL, backoff=30.0))
    thread, told = site.in_thread(run)
    wait_until(lambda: site.store.get(run.run_id).attempt == 2, 20.0)
    current = site.store.get(run.run_id)
    assert (current.state, current.reason, words(site.events(run))[-1]) == (State.PREPARING, "recovering", "decided")
    cancel(site.store, site.backend, current, grace=1.0)
    thread.join(20.0)
    assert not thread.is_alive()
    assert site.store.get(run.run_id).state is State.CANCELLED
    assert (told[0].state, told[0].attempt) == (State.CANCELLED, 2)


def test_a_run_whose_supervisor_was_killed_is_adopted_with_what_it_knew(site: ToySite) -> None:
    run = site.submit(site.plan(nodes=1, orders="1 0 20 time.sleep(60)", hang_timeout=60.0))
    first = start_detached(site.store, run.run_id)
    assert os.getsid(first) == first, "it outlives the terminal"
    assert site.store.get(run.run_id).supervised
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not site.store.get(run.run_id).supervised, 5.0)
    assert "ostrain supervise" in unsupervised(site.store.get(run.run_id))
    site.store.remember(run.run_id, {"restarts": 1, "total": 7})
    kill_worker(site.wait_step(run, "n0", 3))
    start_detached(site.store, run.run_id)
    wait_until(lambda: site.store.get(run.run_id).settled, 30.0)
    current = site.store.get(run.run_id)
    assert (current.state, current.attempt, current.supervision["total"]) == (State.SUCCEEDED, 2, 8)
    assert [entry.detail for entry in site.events(run) if entry.event == "supervising"][1].endswith("one that died")
    log = log_path(run.run_id).read_text()
    assert "node n0 rank 0: worker_killed" in log and "Traceback" not in log
    wait_until(lambda: not site.store.get(run.run_id).supervised, 10.0)


def test_a_node_that_goes_is_fenced_a_spare_takes_its_rank_and_it_cannot_come_back(
    site: ToySite, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = "1 0 6 time.sleep(60)\n1 1 20 time.sleep(60)"  # what ranks do whose peer is gone
    plan = site.with_spares(
        site.plan(orders=waits, hang_timeout=60.0, node_timeout=1.5), 1, monkeypatch, orders="2 0 25 time.sleep(2)"
    )
    run = site.submit(plan)
    thread, told = site.in_thread(run)
    old = site.wait_step(run, "n1", 6)["workers"][0]["pid"]
    site.backend.cut.add("n1")
    wait_until(lambda: "restarted" in words(site.events(run)), 30.0)
    os.kill(old, 0)  # it still runs there
    site.backend.cut.clear()
    thread.join(40.0)
    assert told and (told[0].state, told[0].attempt) == (State.SUCCEEDED, 2)
    entries = site.events(run)
    fault = the(entries, "detected")
    assert (fault.reason, fault.node) == ("node_lost", "n1")
    current = site.store.get(run.run_id)
    assert [node.name for node in current.plan.nodes] == ["n0", "s0"]
    assert the(entries, "fenced").node == "n1"
    assert the(entries, "fence_closed").node == "n1"
    with pytest.raises(ProcessLookupError):
        os.kill(old, 0)
    refused = site.backend.start(RunRef(run.run_id, plan.only({"n1"})), 1, {})["n1"]
    assert isinstance(refused, NodeError) and refused.kind == "fenced"
    assert site.store.get(run.run_id).supervision["excluded"]["n1"]["closed"]


def test_without_a_spare_the_run_goes_on_with_fewer_nodes(site: ToySite, monkeypatch: pytest.MonkeyPatch) -> None:
    run = site.submit(
        site.with_spares(site.plan(orders="1 0 6 time.sleep(60)", node_timeout=1.0, hang_timeout=60.0), 0, monkeypatch)
    )
    thread, told = site.in_thread(run)
    site.wait_step(run, "n1", 3)
    site.backend.cut.add("n1")
    thread.join(40.0)
    assert told and (told[0].state, told[0].attempt) == (State.SUCCEEDED, 2)
    assert [node.name for node in site.store.get(run.run_id).plan.nodes] == ["n0"]
    assert "accumulation 2; the global batch is kept" in the(site.events(run), "shrunk").detail

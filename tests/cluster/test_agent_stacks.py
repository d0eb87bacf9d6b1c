"""The agent's verb ``stacks``: real processes, real signals."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from cluster.agent import StackDump, catches
from cluster.backend import NodeError
from cluster.deadline import fan_out_within
from ostrain.stack_text import main_stack
from tests.cluster.conftest import LocalSite
from tests.cluster.toys import SLEEPER, good, wait_ready, wait_until
from tests.cluster.workers import worker


def rank_pid(site: LocalSite, run: object, rank: int) -> int:
    workers = wait_ready(site.backend, run)["workers"]  # type: ignore[arg-type]
    return int(next(one["pid"] for one in workers if one["rank"] == rank))


def test_every_worker_tells_where_it_is_and_goes_on(site: LocalSite) -> None:
    run = site.start(worker("all_reduce"), ranks=(0, 1))
    wait_ready(site.backend, run)
    for _ in range(2):
        answer = good(site.backend.stacks(run))["node-0"]
        assert sorted(answer["ranks"]) == ["0", "1"] and answer["attempt"] == 1
        for told in answer["ranks"].values():
            assert told["worker"] == "running" and told["state"] in "RS"
            assert [frame.function for frame in main_stack(told["stack"]).frames][:2] == ["all_reduce", "main"]
            assert told["stack"].count("Current thread") == 1, "only the newest dump is sent"
            assert told["heartbeat"] == {"step": 3, "time": told["heartbeat"]["time"], "phase": "step"}
    assert good(site.backend.poll(run))["node-0"]["state"] == "RUNNING"


def test_a_stopped_worker_is_told_by_its_state_and_keeps_nobody_waiting(site: LocalSite) -> None:
    run = site.start(worker("all_reduce"), ranks=(0, 1))
    os.kill(rank_pid(site, run, 1), signal.SIGSTOP)
    start = time.monotonic()
    ranks = good(site.backend.stacks(run, timeout=3.0))["node-0"]["ranks"]
    assert time.monotonic() - start < 3.0
    assert ranks["1"]["state"] == "T" and ranks["1"]["stack"] == ""
    assert ranks["0"]["state"] == "S" and "all_reduce" in ranks["0"]["stack"]


def test_a_worker_without_a_handler_is_not_killed_by_the_question(site: LocalSite) -> None:
    run = site.start(SLEEPER)
    pid = rank_pid(site, run, 0)
    assert not catches(pid, signal.SIGUSR1)
    told = good(site.backend.stacks(run))["node-0"]["ranks"]["0"]
    assert told["state"] == "S" and told["stack"] == ""
    (site.run_dir(run) / "stacks/attempt-1").mkdir(parents=True)
    (site.run_dir(run) / "stacks/attempt-1/rank-0.txt").touch()
    assert good(site.backend.stacks(run))["node-0"]["ranks"]["0"]["worker"] == "running"
    assert good(site.backend.poll(run))["node-0"]["state"] == "RUNNING"


def test_the_stacks_file_starts_anew_when_it_is_long(site: LocalSite, monkeypatch: pytest.MonkeyPatch) -> None:
    run = site.start(worker("all_reduce"))
    pid = rank_pid(site, run, 0)
    path = site.run_dir(run) / "stacks/attempt-1/rank-0.txt"
    path.write_bytes(b"x" * (5 << 20))
    assert "all_reduce" in good(site.backend.stacks(run))["node-0"]["ranks"]["0"]["stack"]
    assert path.stat().st_size < 10_000 and catches(pid, signal.SIGUSR1)


def test_an_earlier_attempts_heartbeat_is_not_this_ones(site: LocalSite) -> None:
    run = site.start(SLEEPER)
    wait_ready(site.backend, run)
    beat = site.run_dir(run) / "heartbeat/rank-0"
    beat.write_text('{"step": 9, "time": 1000.0, "phase": "step"}')
    assert good(site.backend.stacks(run))["node-0"]["ranks"]["0"]["heartbeat"] is None


def test_a_reused_pid_is_left_alone(site: LocalSite, tmp_path: Path) -> None:
    run = site.start(worker("all_reduce"))
    wait_ready(site.backend, run)
    record = {"rank": 0, "pid": os.getpid(), "wrapper_pid": os.getpid(), "state": "running"}
    from cluster.agent import RunDir

    dump = StackDump(RunDir(str(site.run_dir(run))), 1, record)
    assert not dump.alive and not dump.asked


def test_a_node_that_does_not_answer_costs_no_more_than_the_time_given() -> None:
    def call(item: float) -> str:
        time.sleep(item)
        if item == 0.1:
            raise NodeError("unreachable", "refused", node="c")
        return "here"

    start = time.monotonic()
    answers = fan_out_within({"a": 0.0, "b": 30.0, "c": 0.1}, call, seconds=0.6)
    assert time.monotonic() - start < 5.0
    assert answers["a"] == "here"
    assert isinstance(answers["b"], NodeError) and answers["b"].what == "no answer within 0.6 s"
    assert isinstance(answers["c"], NodeError) and answers["c"].what == "refused"


def test_a_mistake_of_ours_is_not_taken_for_a_node_that_is_gone() -> None:
    def call(item: int) -> int:
        return 1 // item

    with pytest.raises(ZeroDivisionError):
        fan_out_within({"a": 0}, call, seconds=5.0)


def test_the_worker_that_ended_is_told(site: LocalSite) -> None:
    run = site.start(worker("done") + "\nraise SystemExit(3)\n")
    wait_until(lambda: good(site.backend.poll(run))["node-0"]["state"] == "FAILED")
    told = good(site.backend.stacks(run))["node-0"]["ranks"]["0"]
    assert told["worker"] == "ended" and told["state"] == ""

"""Which fault was first: on recorded logs whose clocks differ, with noise, consequences and doubts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostrain.states import State
from ostrain.status import RunStatus
from ostrain.why.analysis import Analysis
from ostrain.why.evidence import LogText, read_clock
from ostrain.why.timeline import build
from ostrain.why.verdict import Verdict, conclude
from tests.ostrain.why_helpers import T0, Site


def verdict_of(site: Site) -> Verdict:
    return conclude(site.evidence, build(site.evidence))


def text_of(site: Site, reason: str = "worker_failed", state: State = State.FAILED) -> str:
    status = RunStatus("run-1", 1, state, reason, True)
    moments = build(site.evidence)
    return Analysis(status, site.evidence, moments, conclude(site.evidence, moments)).text()


def test_the_earliest_rank_is_named_though_its_clock_says_otherwise() -> None:
    site = Site(0.0, +5.0, -5.0, 0.0)
    site.log(2, site.glog("node-2", 1.00, "Connection reset by peer"))
    # By the nodes' own clocks rank 1 would be the last; it was the first.
    site.log(1, site.ours(1, 0.10, "error: CUDA of cats", "ERROR"))
    site.end(1, 0.20, code=1)
    site.end(2, 1.10, code=1)
    site.end(0, 1.50, code=1)
    verdict = verdict_of(site)
    assert verdict.first is not None and (verdict.first.node, verdict.first.rank) == ("node-1", 1)
    assert verdict.first.time == pytest.approx(T0 + 0.1, abs=0.002)
    assert verdict.first.text == "error: CUDA of cats"
    assert [one.rank for one in verdict.consequences] == [2, 2, 0]
    told = text_of(site)
    assert "first fault: rank 1 on node node-1" in told
    assert "clock of node-1: 5.000 s ahead of this machine's" in told
    assert "clock of node-2: 5.000 s behind this machine's" in told


def test_what_only_follows_is_never_first_while_there_is_a_cause() -> None:
    site = Site(0.0, 0.0)
    site.log(0, site.glog("node-0", 0.0, "wait socket establish timeout, role[0] rank[0] timeout[120 s]"))
    site.end(0, 0.1, code=1)
    site.log(1, site.glog("node-1", 2.0, "507054: error code is 507054 [HBM]", module="RUNTIME"))
    site.end(1, 2.1, code=1)
    verdict = verdict_of(site)
    assert verdict.first is not None and verdict.first.rank == 1
    assert verdict.code is not None and verdict.code.code == "507054" and verdict.code.kind == "hardware"


def test_a_timeout_alone_is_the_best_there_is() -> None:
    site = Site(0.0)
    site.log(0, site.glog("node-0", 0.0, "EI0006: Getting socket times out"))
    site.end(0, 0.5, code=1)
    verdict = verdict_of(site)
    assert verdict.first is not None and verdict.code is not None and verdict.code.code == "EI0006"
    assert "look for the first fault of another rank" in text_of(site)


def test_killed_by_the_kernel_for_memory() -> None:
    site = Site(0.0, 0.0)
    site.end(1, 0.0, signal="SIGKILL")
    line = "Out of memory: Killed process 1001 (python) total-vm:9kB"
    site.evidence.kernel["node-1"] = [{"time": site.local("node-1", -0.05), "text": line}]
    site.log(0, site.ours(0, 1.0, "error: RuntimeError: Connection refused", "ERROR"))
    site.end(0, 1.1, code=1)
    verdict = verdict_of(site)
    assert verdict.first is not None and verdict.first.rank == 1
    assert verdict.code is not None and verdict.code.code == "host_oom"


def test_a_bare_kill_says_what_could_have_done_it() -> None:
    site = Site(0.0)
    site.end(0, 0.0, signal="SIGKILL")
    assert "dmesg" in text_of(site) and "SIGKILL" in text_of(site)


def test_who_was_ended_by_the_agent_is_a_consequence() -> None:
    site = Site(0.0, 0.0)
    site.event("node-0", 0.5, "killed", killed=[{"pid": 1000, "rank": 0, "signal": "SIGTERM"}], survivors=[])
    site.end(0, 0.6, signal="SIGTERM")
    site.end(1, 0.7, code=1)
    verdict = verdict_of(site)
    assert verdict.first is not None and verdict.first.rank == 1
    assert [one.rank for one in verdict.consequences] == []
    assert "by the node agent" in text_of(site)


def test_an_error_that_training_went_on_after_is_not_the_cause() -> None:
    site = Site(0.0, 0.0)
    site.log(0, site.ours(0, -30.0, "error: a clip could not be read", "ERROR"))
    site.log(0, site.ours(0, -20.0, "step 4/20 loss 0.5 grad_norm 1"))
    site.end(1, 0.0, code=1)
    site.log(1, site.ours(1, -0.1, "Traceback (most recent call last):", "ERROR"))
    site.log(1, site.ours(1, -0.1, '  File "x.py", line 3, in f', "ERROR"))
    site.log(1, site.ours(1, -0.1, "ValueError: shapes (3,) and (4,)", "ERROR"))
    verdict = verdict_of(site)
    assert verdict.first is not None and verdict.first.rank == 1
    assert verdict.first.text == "ValueError: shapes (3,) and (4,)"


def test_retries_while_nodes_come_up_are_no_fault() -> None:
    site = Site(0.0)
    line = "Topology build timed out., retry(3/1200)"
    site.log(0, site.glog("node-0", 0.0, line), site.glog("node-0", 0.5, line), "Cluster is successfully initialized.")
    told = text_of(site, "done", State.SUCCEEDED)
    assert "no fault: no worker ended badly" in told


def test_the_drivers_logs_belong_to_the_rank_whose_process_wrote_them() -> None:
    site = Site(0.0, 0.0)
    text = site.glog("node-1", 0.0, "EI0013: Error ROCE CQE", module="ROCE") + "\n"
    text += site.glog("node-1", -0.2, "link status is down, device 3", module="HCCP") + "\n"
    site.evidence.plogs["node-1"] = [{"path": "/home/t/ascend/log/debug/plog/plog-1001_1.log", "rank": 1, "text": text}]
    site.end(0, 40.0, code=1)
    site.end(1, 40.0, code=1)
    verdict = verdict_of(site)
    assert verdict.first is not None and (verdict.first.kind, verdict.first.rank) == ("plog", 1)
    assert verdict.code is not None and verdict.code.code == "link_down"


def test_faults_within_the_clocks_doubt_are_told_as_such() -> None:
    site = Site(0.0, 0.0, doubt=0.2)
    site.end(0, 0.0, code=1)
    site.end(1, 0.3, code=2)
    assert [one.rank for one in verdict_of(site).doubtful] == [1]
    assert "not certain: rank 1 on node node-1" in text_of(site)
    sure = Site(0.0, 0.0, doubt=0.05)
    sure.end(0, 0.0, code=1)
    sure.end(1, 0.3, code=2)
    assert verdict_of(sure).doubtful == ()


def test_a_hang_seen_by_the_supervisor_comes_before_its_own_kills() -> None:
    site = Site(0.0, 0.0)
    site.evidence.journal = [
        {"time": T0, "attempt": 1, "event": "detected", "node": "node-1", "rank": 1, "reason": "hung",
         "detail": "its process is stopped (SIGSTOP)"}
    ]  # fmt: skip
    site.end(0, 2.0, signal="SIGTERM")
    site.end(1, 2.0, signal="SIGKILL")
    verdict = verdict_of(site)
    assert verdict.first is not None and (verdict.first.kind, verdict.first.rank) == ("supervisor", 1)


def test_a_node_that_is_gone_is_told_by_the_supervisor() -> None:
    site = Site(0.0, 0.0)
    site.evidence.unreachable["node-1"] = "no route to host"
    site.evidence.journal = [
        {"time": T0 + 9, "attempt": 1, "event": "detected", "node": "node-1", "rank": None, "reason": "node_lost"},
        {"time": T0 + 9, "attempt": 2, "event": "detected", "node": "node-0", "rank": 0, "reason": "hung"},
    ]
    site.log(0, site.glog("node-0", 5.0, "Connection reset by peer"))
    site.end(0, 5.2, code=1)
    verdict = verdict_of(site)
    assert verdict.first is not None and (verdict.first.kind, verdict.first.node) == ("supervisor", "node-1")
    assert verdict.code is not None and verdict.code.code == "node_lost"


def test_an_earlier_attempt_is_told_as_such() -> None:
    site = Site(0.0)
    site.end(0, 0.0, signal="SIGSEGV")
    moments = build(site.evidence)
    status = RunStatus("run-1", 2, State.RUNNING, "running", False)
    told = Analysis(status, site.evidence, moments, conclude(site.evidence, moments)).text()
    assert told.startswith("run-1  attempt 1; now RUNNING in attempt 2") and "worker ended by SIGSEGV" in told


def test_a_payloads_own_report_tells_more_than_its_exit_code() -> None:
    site = Site(0.0)
    site.fault(0, 0.0, "no space left on the disk the run writes to")
    site.end(0, 0.05, code=67)
    verdict = verdict_of(site)
    assert verdict.first is not None and verdict.first.kind == "fault"
    assert [one.kind for one in verdict.related] == ["end"]


def test_a_thousand_ranks_fit_on_a_screen() -> None:
    site = Site(*[0.0] * 128, ranks=8)
    site.end(517, 0.0, signal="SIGKILL")
    for rank in range(1024):
        if rank != 517:
            site.end(rank, 5.0 + rank / 1000, signal="SIGTERM")
    told = text_of(site)
    assert "first fault: rank 517 on node node-64" in told
    assert "… and 1015 more" in told and len(told.splitlines()) < 60


def test_nothing_to_see_is_said_so() -> None:
    assert "no fault was found" in text_of(Site(0.0), "agent_lost")
    site = Site(0.0, 0.0)
    site.evidence.unreachable["node-1"] = "no route to host"
    assert "node node-1 does not answer, its logs are missing here: no route to host" in text_of(site)


def test_control_characters_of_a_log_do_not_reach_the_terminal() -> None:
    site = Site(0.0)
    site.log(0, site.ours(0, 0.0, "error: \x1b[2Jgone", "ERROR"))
    site.end(0, 0.1, code=1)
    assert "\x1b" not in text_of(site) and "\\x1b[2Jgone" in text_of(site)


def test_a_clock_is_known_to_half_the_round_trip() -> None:
    # Asked at 100.0, the node (10 s ahead) told 110.5, the answer was here at 100.6.
    clock = read_clock({"asked": 100.0, "time": 110.5, "answered": 100.6, "utc_offset": 3600})
    assert clock.offset == pytest.approx(10.2) and clock.uncertainty == pytest.approx(0.3)
    assert clock.utc_offset == 3600
    assert read_clock({"time": 5.0}).uncertainty is None


def test_metrics_and_records_of_another_attempt_do_not_count() -> None:
    site = Site(0.0)
    site.evidence.files["node-0"] = {
        "workers/attempt-2/rank-0.json": LogText('{"rank": 0, "exit_code": 1, "ended": 1}')
    }
    assert verdict_of(site).first is None


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
_KEYS = st.sampled_from(
    ["time", "event", "attempt", "rank", "pid", "killed", "ended", "signal", "exit_code", "step", "what", "reason"]
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.dictionaries(_KEYS, _JSON | st.sampled_from([1, "killed", "worker_vanished"]), max_size=8), max_size=3)
)
def test_damaged_files_of_a_node_are_no_reason_to_say_nothing(records: list[dict[str, Any]]) -> None:
    site = Site(0.0)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    site.evidence.files["node-0"] = {"events.jsonl": LogText(lines), "logs/attempt-1/worker_0.log": LogText(lines)}
    for number, record in enumerate(records):
        for folder in ("workers", "faults"):
            site.evidence.files["node-0"][f"{folder}/attempt-1/rank-{number}.json"] = LogText(json.dumps(record))
    assert "run-1" in text_of(site)

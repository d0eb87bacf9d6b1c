"""Judging what nodes said: npu-smi's load, versions, clocks, lines for people, the canary's ranks. No node."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from cluster.backend import NodeError
from cluster.inspection import Inspection
from ostrain.plan import LaunchPlan, NodeAccess, NodePlan, PlanFile
from ostrain.preflight import compatibility as fits
from ostrain.preflight.canary import canary_plan, judge
from ostrain.preflight.checks import CHECKS
from ostrain.preflight.evaluate import evaluate, exit_code
from ostrain.preflight.npu_load import Holder, parse_holders, parse_load
from ostrain.preflight.remembered import Memory
from ostrain.preflight.show import lines, summary
from ostrain.preflight.situation import NodeFacts, Situation, Wishes, odd_ones
from ostrain.preflight.verdict import Level, fail, ok
from ostrain.spec.check_config import CheckName
from tests.testbed.ascend import info_table

DOC = Path(__file__).parents[2] / "docs" / "preflight.md"
SUPER_POD = """\
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip  Phy-ID              | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     Ascend910           | OK            | 172.6       52                0    / 0             |
| 0     0                   | 0000:9D:00.0  | 0           0    / 0          3151 / 65536         |
+------------------------------------------------------------------------------------------------+
| 0     Ascend910           | OK            | -           51                0    / 0             |
| 1     1                   | 0000:9F:00.0  | 87          0    / 0          60156/ 65536         |
+===========================+===============+====================================================+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 0       1                 | 2290156       |                          | 56630                   |
"""


def plan(count: int = 2) -> LaunchPlan:
    launch = PlanFile("launch.sh", "exec msrun python -m models.train --config train.yaml\n", 0o755)
    nodes = tuple(
        NodePlan(f"node-{n}", n, NodeAccess(f"10.0.0.{n}"), f"10.0.0.{n}", (2 * n, 2 * n + 1), (0, 1),
                 ("bash", "launch.sh"), (launch, PlanFile("train.yaml", "x: 1\n")))
        for n in range(count)
    )  # fmt: skip
    return LaunchPlan("job", "ssh", "msrun", "CPU", {}, 2 * count, "10.0.0.0", 0, 10, nodes)


def situation(offsets: dict[str, float], error: float = 0.1) -> Situation:
    facts = {name: NodeFacts(name, Inspection({}, offset, error, 0.2, None)) for name, offset in offsets.items()}
    return Situation(plan(len(offsets)), Wishes(several=True), facts)


def test_idle_memory_is_not_busy() -> None:
    loads = parse_load(info_table(8))
    assert [(one.npu, one.used, one.total, one.idle) for one in loads] == [(n, 3314, 65536, True) for n in range(8)]
    assert parse_holders(info_table(8)) == []


def test_busy_chips_of_a_super_pod() -> None:
    first, second = parse_load(SUPER_POD)
    assert first.idle and not second.idle
    assert (second.npu, second.chip, second.cores, second.used) == (0, 1, 87, 60156)
    assert parse_holders(SUPER_POD) == [Holder(0, 1, 2290156, "?", 56630)]


@pytest.mark.parametrize(
    ("mindspore", "cann", "fit"),
    [("2.10.0", "8.3.RC1", True), ("2.10.0", "8.0.RC3", False), ("2.7.1", "8.2.RC1", True), ("3.0.0", "8.0", True)],
)
def test_mindspore_and_cann(mindspore: str, cann: str, fit: bool) -> None:
    assert (fits.cann_of_mindspore(mindspore, cann) == "") is fit


def test_drivers_and_firmware_by_table_and_by_their_own_word() -> None:
    assert fits.driver_of_cann("8.5.0", "25.2.0") == "" == fits.driver_of_cann("8.5.0", "26.1.0")
    assert "not 24.1.rc1" in fits.driver_of_cann("8.5.0", "24.1.rc1")
    driver = "Version=24.1.rc1\ncompatible_version_fw=[7.0.0,7.2.99]\n"
    assert fits.firmware_of_driver(driver, "7.1.0.11.220") == "" == fits.firmware_of_driver("", "9")
    assert "not 7.3.0" in fits.firmware_of_driver(driver, "7.3.0")
    firmware = "Version=7.1.0.11.220\ncompatible_version_drv=[23.0.rc3,23.0.rc3.],[23.0.0,23.0.0.]\n"
    assert fits.driver_of_firmware(firmware, "23.0.RC3") == "" == fits.driver_of_firmware(firmware, "23.0.0.3")
    assert "not 24.1.0" in fits.driver_of_firmware(firmware, "24.1.0")


def test_the_odd_clock_is_named_and_what_the_measure_may_be_off_by_is_forgiven() -> None:
    def levels(offsets: dict[str, float], error: float = 0.1) -> dict[str, Level]:
        return {v.node: v.level for v in evaluate(situation(offsets, error)) if v.check == "clock"}

    assert levels({"node-0": 0.0, "node-1": 90.0}) == {"node-0": Level.OK, "node-1": Level.FAIL}
    assert levels({"node-0": 0.0, "node-1": 2.0}) == {"node-0": Level.OK, "node-1": Level.WARN}
    assert levels({"node-0": 0.0, "node-1": 2.0}, error=3.0) == {"node-0": Level.OK, "node-1": Level.OK}
    # All nodes agree and this machine is off: nothing is wrong with them.
    assert set(levels({"node-0": -60.0, "node-1": -60.1, "node-2": -60.0}).values()) == {Level.OK}


def test_odd_ones() -> None:
    assert odd_ones({"a": 1, "b": 2, "c": 1}) == (1, {"b": 2})
    assert odd_ones({"a": 1, "b": 2}) == (1, {"b": 2})
    assert odd_ones({}) == (None, {})


def test_a_node_that_cannot_be_asked_has_one_line_and_the_gravest_code_wins() -> None:
    error = NodeError("unreachable", "cannot reach it", node="node-1", why="no route", next_step="look")
    told = situation({"node-0": 0.0, "node-1": 0.0})
    told = replace(told, nodes={**told.nodes, "node-1": NodeFacts("node-1", error=error)})
    verdicts = evaluate(told)
    assert [(one.check, one.level) for one in verdicts if one.node == "node-1"] == [("reach", Level.FAIL)]
    assert exit_code([one for one in verdicts if one.node == "node-1"]) == 4
    assert exit_code([*verdicts, fail("node-0", "x")]) == 4 and exit_code([fail("node-0", "x")]) == 3
    assert exit_code([ok("node-0", "x")]) == 0


def test_a_part_that_could_not_be_looked_at_fails_its_lines() -> None:
    told = situation({"node-0": 0.0})
    seen = told.nodes["node-0"].inspection
    assert seen is not None
    parts = {"identity": {"uid": 0, "user": "root"}, "disk": {"error": "OSError: broken"}}
    told = replace(told, nodes={"node-0": NodeFacts("node-0", replace(seen, parts=parts))})
    space = next(one for one in evaluate(told) if one.check == "space")
    assert (space.level, space.why) == (Level.FAIL, "OSError: broken")


def test_lines_are_short_where_all_is_well() -> None:
    verdicts = [replace(ok(f"node-{n}", f"{n} s"), check="clock") for n in range(5)]
    verdicts.append(replace(fail("node-7", "link down", "cable", "plug it in"), check="link"))
    shown = lines(verdicts)
    assert " ".join(shown[0].split()) == "ok clock 5 nodes 0 s; 1 s; 2 s; … (5 in all)"
    assert shown[1].startswith("FAIL  link") and shown[2:] == ["        why: cable", "        next: plug it in"]
    assert len(lines(verdicts, every=True)) == 5 + 3
    assert summary(verdicts, 6) == "2 checks on 6 nodes: 1 failed"


def test_memory_forgets_with_time_other_questions_and_a_reboot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    def memory(expire: float = 60.0, inspector: str = "1") -> Memory:
        return Memory("node-0", NodeAccess("h"), expire, inspector=inspector)

    memory().keep({"speed": ({"a": 1}, {"rate": 5}), "files": ({}, {})}, ["files"], "boot")
    found = memory().known("speed", {"a": 1}, "boot")
    assert found is not None and found[0] == {"rate": 5} and found[1] < 30
    assert memory().known("files", {}) is None
    assert memory().known("speed", {"a": 2}) is None
    assert memory().known("speed", {"a": 1}, "other boot") is None
    assert memory(expire=0.0).known("speed", {"a": 1}) is None
    assert memory(inspector="2").known("speed", {"a": 1}) is None
    memory().path.write_text("broken")
    assert memory().known("speed", {"a": 1}) is None


def answer(**phases: str) -> dict[str, Any]:
    ranks = {key[1:]: {"step": 0, "time": time.time(), "phase": phase} for key, phase in phases.items()}
    workers = [{"rank": int(rank), "pid": 100 + int(rank)} for rank in ranks]
    return {"state": "RUNNING", "fault": None, "heartbeat": ranks, "workers": workers}


def test_the_canary_names_the_rank_that_did_not_arrive() -> None:
    answers = {"node-0": answer(r0="joined", r1="joined"), "node-1": answer(r2="joined", r3="starting")}
    verdicts = list(judge(plan(), answers, 20.0, 20.0))
    assert [(one.node, one.level) for one in verdicts] == [("node-1", Level.FAIL)]
    assert verdicts[0].what == "rank 3 did not arrive within 20 s"
    assert "pid 103" in verdicts[0].why
    answers["node-1"] = answer()
    assert "rank 2-3 did not start" in next(iter(judge(plan(), answers, 20.0, 20.0))).why
    nobody = {"node-0": answer(r0="starting", r1="starting"), "node-1": answer(r2="starting", r3="starting")}
    assert all(one.what == "no rank arrived within 20 s" for one in judge(plan(), nobody, 20.0, 20.0))


def test_the_canary_tells_of_faults_and_of_nodes_that_fall_silent() -> None:
    fault = {"rank": 3, "signal": None, "exit_code": 1, "time": 5.0, "tail": [],
             "message": {"what": "the sum over all ranks is wrong", "why": "a link", "next": "look"}}  # fmt: skip
    answers: dict[str, Any] = {
        "node-0": answer(r0="joined", r1="joined"),
        "node-1": {**answer(r2="joined"), "fault": fault},
    }
    assert [(one.node, one.what) for one in judge(plan(), answers, 1.0, 20.0)] == [
        ("node-1", "the sum over all ranks is wrong")
    ]
    answers["node-1"] = NodeError("unreachable", "gone", node="node-1")
    assert ("node-1", 4) in [(one.node, one.exit_code) for one in judge(plan(), answers, 1.0, 20.0)]
    done = {"node-0": answer(r0="done", r1="done"), "node-1": answer(r2="done", r3="done")}
    assert [one.level for one in judge(plan(), done, 1.0, 20.0)] == [Level.OK, Level.OK]


def test_the_canary_takes_the_place_of_the_task_in_the_launch_files() -> None:
    made = canary_plan(replace(plan(), secrets={"A": "a"}))
    texts = [file.text for node in made.nodes for file in node.files]
    assert texts == ["exec msrun python -m models.canary\n"] * 2
    assert (made.task, made.steps, made.secrets) == ("canary", 1, {"A": "a"})
    with pytest.raises(ValueError, match="no launch file"):
        canary_plan(replace(plan(), task="sample"))


def test_names_of_lines_are_the_ones_that_jobs_may_skip_and_documented() -> None:
    names = tuple(line.name for line in CHECKS)
    assert names == get_args(CheckName)
    text = DOC.read_text(encoding="utf-8")
    for line in CHECKS:
        assert f"| `{line.name}` | {line.meaning} |" in text

"""Which rank is the odd one: every rule, and their order, on answers as nodes give them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.backend import NodeError, RunRef
from ostrain.plan import NodeAccess
from ostrain.stack_text import Kind, main_stack, parse
from ostrain.stuck import StuckReport, judge, look
from tests.cluster.toys import make_plan, node_plan
from tests.ostrain import stack_samples as samples

NOW = 1000.0


def run_of(nodes: int, ranks_per_node: int = 1) -> RunRef:
    def node(number: int) -> Any:
        ranks = range(number * ranks_per_node, (number + 1) * ranks_per_node)
        return node_plan(f"node-{number}", NodeAccess("127.0.0.1"), ranks=tuple(ranks), node_rank=number)

    return RunRef("run-1", make_plan("ssh", [node(number) for number in range(nodes)]))


def told(stack: str = samples.IN_ALL_REDUCE, step: int | None = 7, age: float = 1.0, **more: Any) -> dict[str, Any]:
    beat = None if step is None else {"step": step, "time": NOW - age, "phase": more.pop("phase", "step")}
    return {"worker": "running", "state": "S", "wchan": "", "stack": stack, "heartbeat": beat, **more}


def answers(*ranks: Any) -> dict[str, Any]:
    """One rank a node."""
    return {
        f"node-{number}": one
        if isinstance(one, NodeError)
        else {"time": NOW, "attempt": 1, "ranks": {str(number): one}}
        for number, one in enumerate(ranks)
    }


def judged(*ranks: Any) -> StuckReport:
    return judge(run_of(len(ranks)), answers(*ranks))


def gone(node: int) -> NodeError:
    return NodeError("unreachable", "no route to host", node=f"node-{node}")


def test_a_stopped_process_is_named_before_anything_else() -> None:
    report = judged(told(), told(samples.READING_DATA, step=6), told("", state="T"), gone(3))
    assert report.suspect is not None and report.suspect.rank == 2
    assert report.lines[0] == "rank 2 on node node-2 at step 7: its process is stopped (SIGSTOP)"
    assert "node node-3 does not answer: no route to host" in report.lines


def test_a_process_held_by_the_kernel() -> None:
    report = judged(told(), told("", state="D", wchan="rpc_wait_bit_killable"))
    assert report.suspect is not None and report.suspect.rank == 1
    assert "rpc_wait_bit_killable" in report.suspect.why and "state D" in report.suspect.why


def test_a_worker_that_is_gone_while_others_wait() -> None:
    report = judged(told(), told("", worker="vanished", state=""), told())
    assert report.suspect is not None and report.suspect.rank == 1 and "vanished" in report.suspect.why


def test_a_worker_that_has_finished_is_nobodys_suspect() -> None:
    report = judged(told("", worker="ended", state="", phase="done"), told(samples.READING_DATA), told())
    assert report.suspect is not None and report.suspect.rank == 1


def test_a_node_that_does_not_answer() -> None:
    report = judged(told(), gone(1), told())
    assert report.suspect is not None and (report.suspect.node, report.suspect.rank) == ("node-1", None)
    assert report.lines == ("node node-1: the node does not answer: no route to host",)
    assert [one.worker for one in report.ranks] == ["running", "unknown", "running"]


def test_the_lowest_step() -> None:
    report = judged(told(step=8), told(samples.COMPUTING, step=7), told(step=8))
    assert report.suspect is not None and report.suspect.rank == 1 and report.suspect.step == 7
    assert "models/ops/cpu.py:61 linear" in report.lines[0] and "2 others at up to step 8" in report.lines[0]


def test_of_ranks_at_the_lowest_step_the_one_that_waits_for_nobody() -> None:
    report = judged(told(step=8), told(step=7, age=9), told(samples.SAVING, step=7, age=8), told(step=8))
    assert report.suspect is not None and report.suspect.rank == 2 and "checkpoint" in report.suspect.why


@pytest.mark.parametrize(
    ("stack", "doing", "frame"),
    [
        (samples.READING_DATA, "reads data", "models/data/loader.py:74 get"),
        (samples.SAVING, "writes or reads a checkpoint", "models/files.py:31 write_atomic"),
        (samples.COMPUTING, "is elsewhere", "models/ops/cpu.py:61 linear"),
    ],
)
def test_the_one_that_is_not_in_the_collective(stack: str, doing: str, frame: str) -> None:
    report = judged(told(), told(), told(stack), told())
    suspect = report.suspect
    assert suspect is not None and (suspect.rank, suspect.node, suspect.frame) == (2, "node-2", frame)
    assert suspect.why == f"it {doing} while 3 others wait in models/parallel/group.py:53 all_reduce"


def test_two_ranks_of_which_one_waits() -> None:
    report = judged(told(samples.READING_DATA), told())
    assert report.suspect is not None and report.suspect.rank == 0
    assert report.suspect.why.endswith("while 1 other waits in models/parallel/group.py:53 all_reduce")


def test_waiting_for_the_device_is_waiting() -> None:
    report = judged(told(samples.IN_ASNUMPY), told(samples.IN_ASNUMPY), told(samples.COMPUTING))
    assert report.suspect is not None and report.suspect.rank == 2


def test_another_line_of_the_same_collective_is_another_meeting() -> None:
    report = judged(told(), told(), told(samples.IN_ANOTHER_ALL_REDUCE))
    assert report.suspect is not None and report.suspect.rank == 2


def test_a_rank_without_a_stack_is_not_odd_for_that() -> None:
    assert judged(told(), told(), told("")).suspect is None


def test_the_oldest_heartbeat_when_no_stack_tells() -> None:
    report = judged(told("", age=1), told("", age=30), told("", age=2))
    assert report.suspect is not None and report.suspect.rank == 1
    assert report.suspect.why == "its last heartbeat is 30 s old, every other's at most 2 s"


def test_clocks_that_differ_do_not_count() -> None:
    both = answers(told("", age=1.0), told("", age=1.5))
    both["node-1"]["time"] += 500
    both["node-1"]["ranks"]["1"]["heartbeat"]["time"] += 500
    assert judge(run_of(2), both).suspect is None


def test_nobody_stands_out() -> None:
    report = judged(told(), told(), told())
    assert report.suspect is None
    assert report.lines[0].startswith("no rank stands out: all 3 wait in models/parallel/group.py:53 all_reduce")
    report = judged(told(samples.COMPUTING), told(samples.COMPUTING))
    assert report.lines == ("no rank stands out of 2; the newest heartbeat is 1 s old",)
    assert judged(told("", worker="ended", state="")).lines == ("no worker runs",)


def test_kinds_of_places() -> None:
    expected = {
        samples.IN_ALL_REDUCE: Kind.COLLECTIVE,
        samples.NATIVE_SEND: Kind.COLLECTIVE,
        samples.SENDING_TO_A_CHILD: Kind.ELSEWHERE,
        samples.IN_ASNUMPY: Kind.SYNC,
        samples.READING_DATA: Kind.DATA,
        samples.SAVING: Kind.SAVING,
        samples.COMPUTING: Kind.ELSEWHERE,
        "": Kind.UNKNOWN,
    }
    assert {text: main_stack(text).kind for text in expected} == expected


def test_threads_are_told_apart() -> None:
    stacks = parse(samples.READING_DATA)
    assert [len(stack.frames) for stack in stacks] == [6, 11]
    assert main_stack(samples.READING_DATA) == stacks[1]
    named = 'Thread 0x00007f2b1c4f0740 [python] (most recent call first):\n  File "/a/b.py", line 3 in f\n'
    assert str(main_stack(named).frames[0]) == "a/b.py:3 f"
    assert str(main_stack(samples.IN_ASNUMPY).frames[0]) == "mindspore/common/tensor.py:1102 asnumpy"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text() | st.integers(0, len(samples.SAVING)).map(lambda end: samples.SAVING[:end]))
def test_any_text_is_read(text: str) -> None:
    assert main_stack(text).kind in Kind


class Silent:
    """A backend whose nodes cannot be asked for stacks."""

    def poll(self, run: RunRef, *, timeout: float) -> dict[str, Any]:
        beats = {"0": {"step": 5, "time": NOW, "phase": "step"}}
        return {
            "node-0": {"time": NOW, "heartbeat": beats, "workers": [{"rank": 0, "state": "running"}]},
            "node-1": {"time": NOW, "heartbeat": {"1": {"step": 4, "time": NOW, "phase": "step"}}, "workers": []},
        }


def test_heartbeats_have_to_do_where_there_are_no_stacks() -> None:
    report = look(Silent(), run_of(2), timeout=2.0)  # type: ignore[arg-type]
    assert report.suspect is not None and report.suspect.rank == 1
    assert report.as_dict()["suspect"]["why"] == "it is at step 4, 1 other at up to step 5"


class Closed(Silent):
    """A backend that says of every node that its workers cannot be asked."""

    def stacks(self, run: RunRef, *, timeout: float) -> dict[str, Any]:
        return {node.name: gone(node.node_rank) for node in run.plan.nodes}


def test_heartbeats_have_to_do_where_workers_cannot_be_asked() -> None:
    report = look(Closed(), run_of(2), timeout=2.0)  # type: ignore[arg-type]
    assert not report.unreachable and report.suspect is not None and report.suspect.rank == 1

"""What follows from a fault: a table of scenarios, and what must hold whatever happens."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostrain.states import REASONS
from ostrain.supervisor.decide import GiveUp, Restart, Site, decide
from ostrain.supervisor.health import Fault
from ostrain.supervisor.layouts import Fit, Shape, shrink
from ostrain.supervisor.memory import Exclusion, Memory, PastFault
from ostrain.supervisor.policy import (
    ASCEND_POLICIES,
    RULES,
    Action,
    LogFinding,
    LogPolicy,
    log_policy_table,
    match_line,
    policy_table,
)
from ostrain.supervisor.settings import Settings

FOUR = ("a", "b", "c", "d")
WANTED = Shape(4, 8, sp=4, sp_kind="dsp", zero=2, accumulation=1, batch=2)


def site(answering: str = "abcds", spares: str = "s", active: tuple[str, ...] = FOUR, shrinks: bool = True) -> Site:
    fit = (lambda count: shrink(WANTED, count)) if shrinks else (lambda count: None)
    return Site(active, frozenset(answering), tuple(spares), 4, fit)


def after(
    reason: str,
    node: str | None = "b",
    step: int | None = 7,
    memory: Memory | None = None,
    where: Site | None = None,
    finding: LogFinding | None = None,
    trained: float = 10.0,
    **changes: object,
) -> Restart | GiveUp:
    fault = Fault(reason, node, 1, step, 100.0)
    rules = dataclasses.replace(Settings(max=3, backoff=1.0), **changes)  # type: ignore[arg-type]
    return decide(memory or Memory(), fault, 1, trained, where or site(), rules, finding)


def past(*nodes: str, reason: str = "worker_killed", step: int = 3) -> Memory:
    return Memory(
        restarts=len(nodes),
        faults=tuple(PastFault(number, reason, node, step, 0.0) for number, node in enumerate(nodes)),
    )


@pytest.mark.parametrize("reason", [rule.reason for rule in RULES.values() if rule.action is Action.RETRY])
def test_accidents_are_retried_on_the_same_nodes(reason: str) -> None:
    decision = after(reason)
    assert isinstance(decision, Restart)
    assert (decision.nodes, decision.excluded, decision.memory.restarts) == (FOUR, (), 1)


@pytest.mark.parametrize("reason", [rule.reason for rule in RULES.values() if rule.action is Action.NEVER] + ["new"])
def test_what_only_a_person_can_mend_is_given_up(reason: str) -> None:
    decision = after(reason)
    assert isinstance(decision, GiveUp) and reason in decision.why


@pytest.mark.parametrize("reason", ["node_lost", "disk_full", "survivors"])
def test_a_spare_takes_the_place_and_the_ranks_of_the_excluded_node(reason: str) -> None:
    decision = after(reason, where=site(answering="acds"))
    assert isinstance(decision, Restart)
    assert decision.nodes == ("a", "s", "c", "d")
    fence = decision.memory.excluded["b"]
    assert (fence.attempt, fence.closed, fence.usable) == (2, False, False)


def test_no_spare_left_shrinks_with_the_global_batch_kept() -> None:
    decision = after("node_lost", where=site(answering="acd", spares=""))
    assert isinstance(decision, Restart) and decision.fit is not None
    assert decision.nodes == ("a", "c")
    assert decision.fit.shape.samples == WANTED.samples and decision.word == "shrink"


def test_without_substitute_a_lost_node_is_waited_for_and_a_full_disk_given_up() -> None:
    alone = site(answering="acd", spares="", shrinks=False)
    decision = after("node_lost", where=alone)
    assert isinstance(decision, Restart)
    assert (decision.nodes, decision.awaited, decision.excluded) == (FOUR, ("b",), ())
    decision = after("disk_full", where=site(spares="", shrinks=False))
    assert isinstance(decision, GiveUp) and "no other node" in decision.why


def test_the_same_node_twice_in_a_row_is_the_fault() -> None:
    decision = after("worker_killed", memory=past("b"))
    assert isinstance(decision, Restart) and decision.nodes == ("a", "s", "c", "d")
    decision = after("worker_killed", memory=past("c"))
    assert isinstance(decision, Restart) and decision.nodes == FOUR
    alone = Site(("b",), frozenset("b"), (), 1)
    decision = after("worker_killed", memory=past("b"), where=alone)
    assert isinstance(decision, Restart) and decision.nodes == ("b",), "there is no other"


def test_the_same_error_at_the_same_step_is_no_accident() -> None:
    memory = past("c", reason="worker_failed", step=7)
    assert isinstance(after("worker_failed", memory=memory), GiveUp)
    assert isinstance(after("worker_failed", step=8, memory=memory), Restart)
    assert isinstance(after("worker_killed", memory=memory), Restart)


def test_restarts_are_counted_in_a_row_and_wait_longer_each_time() -> None:
    assert isinstance(after("worker_killed", memory=past("a", "c", "d")), GiveUp)
    waits = []
    for nodes in ("", "a", "ac"):
        decision = after("worker_killed", memory=past(*nodes), backoff=2.0, backoff_max=5.0)
        assert isinstance(decision, Restart)
        waits.append(decision.wait)
    assert waits == [2.0, 4.0, 5.0]
    decision = after("worker_killed", memory=past("a", "c", "d"), trained=4000.0)
    assert isinstance(decision, Restart) and decision.memory.restarts == 1, "it had trained for long"


def test_a_line_in_the_logs_overrules_the_table() -> None:
    stop = LogFinding(LogPolicy("x", "stop", "told so"), "b", "worker_1.log", "x")
    decision = after("worker_killed", finding=stop)
    assert isinstance(decision, GiveUp) and decision.why == "told so"
    away = LogFinding(LogPolicy("x", "exclude_node", "broken"), "c", "worker_2.log", "x")
    decision = after("worker_killed", finding=away)
    assert isinstance(decision, Restart) and decision.nodes == ("a", "b", "s", "d")
    assert not decision.memory.excluded["c"].readmit
    assert isinstance(after("worker_failed", finding=away, where=site(spares="", shrinks=False)), GiveUp)


def test_a_node_comes_back_as_a_spare_only_once_its_fence_is_closed() -> None:
    memory = Memory(excluded={"s": Exclusion(2, "node_lost", 0.0, readmit=True)})
    decision = after("node_lost", memory=memory, where=site(answering="acds", shrinks=False))
    assert isinstance(decision, Restart) and decision.awaited == ("b",)
    decision = after("node_lost", memory=memory.with_closed("s"), where=site(answering="acds"))
    assert isinstance(decision, Restart) and decision.nodes == ("a", "s", "c", "d")
    assert "s" not in decision.memory.excluded


def test_a_shrunk_run_grows_again_when_nodes_are_back() -> None:
    shrunk = dataclasses.replace(site(answering="acbd", spares="bd"), active=("a", "c"))
    decision = after("worker_killed", node="a", where=shrunk)
    assert isinstance(decision, Restart)
    assert (decision.nodes, decision.fit) == (("a", "c", "b", "d"), None)


NODES = [f"n{number}" for number in range(6)]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(RULES)),
            st.sampled_from([*NODES, None]),
            st.integers(0, 5),
            st.sets(st.sampled_from(NODES), max_size=3),
        ),
        max_size=12,
    ),
    st.integers(0, 4),
)
def test_never_more_than_max_in_a_row_and_never_a_node_that_was_given_up(
    story: list[tuple[str, str | None, int, set[str]]], limit: int
) -> None:
    rules, memory = Settings(max=limit, backoff=1.0), Memory()
    wanted = Shape(4, 2, accumulation=1, batch=3)
    active: tuple[str, ...] = tuple(NODES[:4])
    for attempt, (reason, node, step, silent) in enumerate(story, start=1):
        spares = tuple(name for name in NODES if name not in active)
        place = Site(active, frozenset(NODES) - silent, spares, 4, lambda count: shrink(wanted, count))
        given_up = {name for name, one in memory.excluded.items() if not one.usable}
        decision = decide(memory, Fault(reason, node, None, step), attempt, 5.0, place, rules)
        if isinstance(decision, GiveUp):
            assert decision.memory.gave_up
            return
        assert attempt <= limit
        assert not given_up & set(decision.nodes)
        assert len(set(decision.nodes)) == len(decision.nodes) >= 1
        assert not set(decision.nodes) & set(dict(decision.excluded))
        assert set(decision.awaited) == set(decision.nodes) & silent
        if decision.fit is not None:
            assert decision.fit.shape.nodes == len(decision.nodes) < 4
            assert decision.fit.shape.samples == wanted.samples or decision.fit.error > 0
        assert Memory.of(decision.memory.as_dict()) == decision.memory, "the store keeps all of it"
        memory, active = decision.memory, decision.nodes


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 8), st.integers(1, 8), st.sampled_from([1, 2, 4]), st.integers(1, 4), st.integers(1, 6),
    st.integers(1, 8), st.booleans(), st.sampled_from([4, 16, 24]), st.sampled_from(["ulysses", "dsp"]),
)  # fmt: skip
def test_shrinking_keeps_the_global_batch_or_says_by_how_much_not(
    nodes: int, devices: int, sp: int, accumulation: int, batch: int, left: int, buckets: bool, heads: int, kind: str
) -> None:
    wanted = Shape(nodes, devices, sp, kind, 1, accumulation, batch, heads, buckets)  # type: ignore[arg-type]
    if not wanted.legal:
        return
    fit = shrink(wanted, left)
    assert fit is not None and fit.shape.legal and fit.shape.nodes <= min(left, nodes)
    shape = fit.shape
    assert shape.batch is not None and shape.batch <= batch and (not buckets or shape.batch == batch)
    assert fit.error == abs(shape.samples - wanted.samples) / wanted.samples
    assert ("is kept" in fit.describe(wanted)) == (shape.samples == wanted.samples)
    if not buckets:
        # On one node with one sample at a time every batch of the job can be had, if the layout is legal there.
        exact = [one for one in range(1, shape.nodes + 1) if wanted.samples % (one * devices // sp or 1) == 0
                 and (one * devices) % sp == 0]  # fmt: skip
        assert not exact or fit.error == 0


def test_the_best_shape_is_the_largest_that_keeps_the_batch() -> None:
    assert shrink(Shape(4, 8, sp=4, accumulation=1, batch=1), 3) == Fit(Shape(2, 8, sp=4, accumulation=2, batch=1), 0.0)
    assert shrink(Shape(4, 8, sp=4, accumulation=3, batch=1), 3) == Fit(Shape(3, 8, sp=4, accumulation=4, batch=1), 0.0)
    three = shrink(Shape(4, 1, accumulation=1, batch=3), 3)
    assert three is not None and (three.shape.nodes, three.shape.batch, three.shape.accumulation) == (3, 2, 2)
    wanted = Shape(3, 1, accumulation=1, batch=1, buckets=True)
    odd = shrink(wanted, 2, least=2)
    assert odd is not None and "becomes 4 instead of 3, no layout keeps it" in odd.describe(wanted)


def test_preset_policies_know_their_lines_and_leave_others_alone() -> None:
    lines = {
        "EI0004: 2024-04-24-06:31:33.915.634 The ranktable or rank is invalid, Reason:[…]": "stop",
        "[ERROR] HCCL(1,python):2026 EI0013 error cqe status": "exclude_node",
        "HBM multi-bit ECC error on device 3": "exclude_node",
    }
    for line, action in lines.items():
        finding = match_line(ASCEND_POLICIES, "a", "p", ["step 1/9", line])
        assert finding is not None and (finding.policy.action, finding.line) == (action, line)
    assert match_line(ASCEND_POLICIES, "a", "p", ["step 10004/90014 loss 0.1", "memory 12 GB"]) is None


def test_the_document_shows_the_tables_of_the_code() -> None:
    text = (Path(__file__).parents[3] / "docs" / "recovery.md").read_text()
    assert policy_table() in text
    assert log_policy_table() in text
    assert set(RULES) - {"survivors"} <= {word for word, reason in REASONS.items() if reason.state.final}
    missing = {word for word, one in REASONS.items() if one.state.value == "FAILED"} - set(RULES)
    assert not missing, f"no rule for {missing}"

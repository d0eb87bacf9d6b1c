"""From the nodes' answers to a verdict, on a clock that the tests turn."""

from __future__ import annotations

import dataclasses
from typing import Any

from ostrain.states import State
from ostrain.supervisor.health import BEGIN, COLLECT, LAST_NODE, SILENT, Ended, Fault, Health, Verdict, Well
from ostrain.supervisor.settings import Settings

RULES = Settings(max=3, node_timeout=10.0, hang_timeout=20.0, start_timeout=300.0)
WALL = 1_000_000.0


class Story:
    """Nodes a and b of attempt 2, one rank each; seconds are counted from the start."""

    def __init__(self, rules: Settings = RULES) -> None:
        self.health = Health(["a", "b"], 2, rules, 0.0)
        self.now = 0.0

    def at(self, now: float) -> Story:
        self.now = now
        return self

    def tell(
        self, node: str, state: str = "RUNNING", step: int = 0, phase: str = "step", *, attempt: int = 2, **more: Any
    ) -> Story:
        rank = {"a": 0, "b": 1}[node]
        skew = {"a": 0.0, "b": 500.0}[node]  # b's clock is ahead
        time = WALL + self.now + skew
        status = {
            "state": state, "attempt": attempt, "time": time, "reason": "running", "fault": None,
            "workers": [{"rank": rank, "started": WALL + skew}],
            "heartbeat": {str(rank): {"step": step, "phase": phase, "time": time}}, **more,
        }  # fmt: skip
        self.health.answered(node, self.now)
        self.health.news(node, status, self.now, WALL + self.now)
        return self

    def train(self, start: float, stop: float, *, nodes: str = "ab", every: float = 1.0) -> Story:
        """Steps at a pace; the step is the time."""
        moment = start
        while moment <= stop:
            for node in nodes:
                self.at(moment).tell(node, step=int(moment / every))
            moment += every
        return self

    def tick(self, *nodes: str) -> Story:
        for node in nodes:
            self.health.answered(node, self.now)
        return self

    def verdict(self) -> Verdict:
        return self.health.verdict(self.now, WALL + self.now)

    def fault(self) -> Fault:
        found = self.verdict()
        assert isinstance(found, Fault), found
        return found


def fault(reason: str, time: float, node: str = "a", **more: Any) -> dict[str, Any]:
    skew = {"a": 0.0, "b": 500.0}[node]
    return {"reason": reason, "time": WALL + time + skew, "rank": {"a": 0, "b": 1}[node], "signal": None, **more}


def test_training_is_well_and_ends() -> None:
    story = Story().train(1, 30)
    assert isinstance(story.verdict(), Well)
    assert story.health.step == 30 and story.health.trained(story.now) > 20
    story.at(31).tell("a", "SUCCEEDED", 31, "done")
    assert isinstance(story.verdict(), Well)
    story.tell("b", "SUCCEEDED", 31, "done")
    assert story.verdict() == Ended(State.SUCCEEDED)


def test_the_first_fault_is_found_on_one_clock_after_a_moment_for_the_others() -> None:
    story = Story().train(1, 5)
    story.at(6).tell("a", "FAILED", fault=fault("worker_failed", 5.9, exit_code=1))
    assert isinstance(story.verdict(), Well), "the cause may still be on its way"
    story.tell("b", fault=None).at(6.5).tell("b", "FAILED", fault=fault("worker_killed", 5.2, "b", signal="SIGKILL"))
    found = story.fault()
    assert (found.reason, found.node, found.rank, found.detail) == ("worker_killed", "b", 1, "killed by SIGKILL")
    assert abs(found.time - (WALL + 5.2)) < 0.01


def test_a_cause_comes_before_what_it_brought_about_though_clocks_are_a_little_off() -> None:
    story = Story().train(1, 5)
    story.at(6).tell("a", "FAILED", fault=fault("worker_killed", 5.0, signal="SIGABRT"))
    story.tell("b", "FAILED", fault=fault("worker_killed", 5.6, "b", signal="SIGKILL"))
    assert story.fault().node == "b"


def test_a_failure_while_another_node_is_silent_waits_for_that_node() -> None:
    story = Story().train(1, 5)
    story.at(12).tell("a", "FAILED", fault=fault("worker_killed", 11.5, signal="SIGABRT"))
    story.at(12 + COLLECT)
    assert isinstance(story.verdict(), Well)
    story.at(15.1)
    found = story.fault()
    assert (found.reason, found.node, found.lost) == ("node_lost", "b", ("b",))
    # It answers in time, and has the cause.
    story = Story().train(1, 5)
    story.at(12).tell("a", "FAILED", fault=fault("worker_failed", 11.5))
    story.at(14).tell("b", "FAILED", fault=fault("node_rebooted", 6.0, "b"))
    assert story.fault().reason == "node_rebooted"


def test_a_silent_node_is_lost_only_while_the_run_stands_still() -> None:
    story = Story().train(1, 5)
    story.train(6, 60, nodes="a")  # b's sshd died, its training did not
    assert isinstance(story.verdict(), Well)
    assert story.health.doubtful(story.now)[0][0] == "b"
    assert story.health.doubtful(story.now) == [], "told once"
    story.at(69).tick("a")
    assert isinstance(story.verdict(), Well)
    story.at(70.1).tick("a")
    found = story.fault()
    assert (found.reason, found.node, found.lost) == ("node_lost", "b", ("b",))


def test_a_link_that_comes_back_in_time_is_no_fault() -> None:
    story = Story().train(1, 5)
    story.at(6 + SILENT).tick("a")
    story.health.silent("b", "no route to host")
    assert story.health.doubtful(story.now) == [("b", "no route to host")]
    story.at(14.9)
    assert isinstance(story.verdict(), Well)
    assert story.health.answered("b", story.now), "it had been in doubt"
    story.at(20).tick("a", "b")
    assert isinstance(story.verdict(), Well)


def test_long_steps_give_a_silent_node_longer() -> None:
    story = Story().train(30, 300, every=30.0)
    story.at(320).tick("a")
    story.health.silent("b", "")
    assert isinstance(story.verdict(), Well), "a step takes 30 s"
    assert story.at(361).tick("a").fault().reason == "node_lost"


def test_a_hang_is_no_step_for_the_time_the_job_says() -> None:
    story = Story().train(1, 5)
    story.at(24.9).tick("a", "b")
    assert isinstance(story.verdict(), Well)
    story.at(25.1).tick("a", "b")
    found = story.fault()
    assert (found.reason, found.step, found.node) == ("hung", 5, None)
    assert abs(found.time - (WALL + 5)) < 0.01


def test_a_hang_with_a_silent_node_is_that_node() -> None:
    story = Story(dataclasses.replace(RULES, hang_timeout=8.0)).train(1, 5)
    story.at(9).tick("b")
    story.at(14).tick("a")
    story.health.silent("b", "no route to host")
    assert isinstance(story.verdict(), Well)
    assert story.at(19.1).tick("a").fault().reason == "node_lost"
    story.at(19.2).tick("a", "b")
    assert story.fault().reason == "hung", "it is back, and nothing goes on"


def test_slow_steps_are_learned() -> None:
    story = Story().train(15, 150, every=15.0)
    story.at(190).tick("a", "b")
    assert isinstance(story.verdict(), Well), "three times a step of 15 s"
    assert story.at(196).tick("a", "b").fault().reason == "hung"


def test_compiling_and_saving_have_their_own_bound_where_all_ranks_do_it() -> None:
    story = Story().train(1, 5)
    story.at(6).tell("a", step=5, phase="compiling").tell("b", step=5, phase="compiling")
    story.at(200).tick("a", "b")
    assert isinstance(story.verdict(), Well)
    story.tell("a", step=5, phase="step")
    assert story.fault().reason == "hung", "one is through, so the other is not compiling but stuck"
    begun = Story()
    begun.at(1).tell("a", phase="loading").tell("b", phase="starting")
    begun.at(200).tell("a", phase="step").tick("b")
    assert isinstance(begun.verdict(), Well), "the first step waits for the slowest to load"
    assert begun.at(301).tick("a", "b").fault().reason == "hung"


def test_heartbeats_of_the_attempt_before_are_no_progress() -> None:
    story = Story()
    story.at(1).tell("a", step=17, heartbeat={"0": {"step": 17, "phase": "step", "time": WALL - 60}})
    assert story.health.step is None
    story.at(2).tell("a", step=0, phase="starting").at(3).tell("a", step=8)
    assert not story.health.stepped, "8 is where it goes on from"
    story.at(4).tell("a", step=9)
    assert story.health.stepped and story.health.step == 9


def test_an_attempt_that_a_node_never_began() -> None:
    story = Story()
    story.at(BEGIN + 1).tell("a").tell("b", "FAILED", attempt=1)
    found = story.fault()
    assert (found.reason, found.node) == ("start_failed", "b")


def test_the_last_node_to_say_that_it_succeeded_has_time_for_it() -> None:
    story = Story().train(1, 5)
    story.at(6).tell("a", "SUCCEEDED", 5, "done")
    story.health.silent("b", "connection refused")
    story.at(7)
    assert isinstance(story.verdict(), Well)
    story.at(30)
    assert isinstance(story.verdict(), Well), "the run is over but for its word"
    story.at(7 + LAST_NODE + 1)
    found = story.verdict()
    assert isinstance(found, Ended) and found.state is State.RUNNING and "b does not answer" in found.detail


def test_a_cancel_is_no_fault() -> None:
    story = Story().train(1, 5)
    story.at(6).tell("a", "CANCELLED").tell("b", "FAILED", fault=fault("worker_killed", 5.9, "b"))
    assert story.verdict() == Ended(State.CANCELLED)

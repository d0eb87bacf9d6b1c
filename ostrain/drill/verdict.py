"""From what was seen of a disturbed run to a verdict: was it detected, named, recovered, and is nothing lost. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ostrain.drill.faults import HANG_MARGIN, Expect, Fault, Injection
from ostrain.drill.logs import LogLoss
from ostrain.drill.watcher import Seen
from ostrain.supervisor.journal import Entry

# Another layout adds the same numbers in another order; the differences grow with the steps.
TOLERANCE = 1e-3
# A timestamp of the journal may be this much before ours: it is written by another process.
SLACK = 0.5
LossPair = tuple[float | None, float | None]


@dataclass(frozen=True)
class Facts:
    """All that is known of a case when it is over.

    attempt: the one that was disturbed. smaller: whether the job has to go on with fewer nodes, None where it may.
    left: processes of the run on nodes that answer; supervisor_left: whether its supervisor is still there.
    straggler: node of the rank that the others waited for after the fault; empty where none stood out.
    """

    fault: Fault
    injection: Injection
    attempt: int
    seen: Seen
    journal: Sequence[Entry]
    base: dict[int, LossPair]
    steps: int
    every: int
    hang_timeout: float
    smaller: bool | None
    state: str
    reason: str
    attempts: int
    nodes_after: int
    nodes_before: int
    logs: LogLoss = field(default_factory=LogLoss)
    left: dict[str, int] = field(default_factory=dict)
    supervisor_left: bool = False
    store: str = "ok"
    straggler: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a case showed. Times in seconds after the fault, None where there is none; problems: empty when all is as
    it should be. losses: equal (bit for bit), close (another layout), different, or missing."""

    fault: str
    told: str = ""
    detected_in: float | None = None
    recovered_in: float | None = None
    restarts: int = 0
    steps_lost: int | None = None
    reason: str = ""
    named: str = ""
    losses: str = ""
    log_lost: int = 0
    log_doubled: int = 0
    log_unread: tuple[str, ...] = ()
    processes_left: int = 0
    store: str = ""
    run_id: str = ""
    seed: int = 0
    seconds: float = 0.0
    cannot: str = ""
    problems: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "good": self.good}


def judge(facts: Facts) -> Verdict:
    """The verdict on one case."""
    expect = facts.fault.expect
    found = detection(facts)
    first, lost = recovery(facts)
    restarts = facts.attempts - facts.attempt
    word, worst = compare_losses(facts.seen.final_losses(), facts.base, facts.steps)
    left = sum(facts.left.values()) + facts.supervisor_left
    problems = [
        *_end_problems(facts),
        *_restart_problems(expect, restarts, facts),
        *(_detection_problems(expect, facts, found) if restarts else ()),
        *_straggler_problems(expect, facts),
        *_loss_problems(word, worst, facts),
        *_leftover_problems(facts),
    ]
    if lost is not None and lost > 2 * facts.every:
        problems.append(f"{lost} steps were made again, though there is a checkpoint every {facts.every}")
    return Verdict(
        fault=facts.fault.name,
        told=facts.injection.told,
        detected_in=None if found is None else round(found.time - facts.injection.time, 2),
        recovered_in=None if first is None else round(first - facts.injection.time, 2),
        restarts=restarts,
        steps_lost=lost,
        reason=found.reason if found else "",
        named=_named(found) or (facts.straggler if expect.straggler else ""),
        losses=word,
        log_lost=facts.logs.lost,
        log_doubled=facts.logs.doubled,
        log_unread=facts.logs.unread,
        processes_left=left,
        store=facts.store,
        problems=tuple(problems),
    )


def detection(facts: Facts) -> Entry | None:
    """The first fault that the supervisor detected after the injection."""
    since = facts.injection.time - SLACK
    return next((entry for entry in facts.journal if entry.event == "detected" and entry.time >= since), None)


def recovery(facts: Facts) -> tuple[float | None, int | None]:
    """When the first step of a later attempt was seen, and how many steps had to be made again for it."""
    later = [attempt for attempt in sorted(facts.seen.losses) if attempt > facts.attempt]
    if not later:
        return None, None
    resumed = min(facts.seen.losses[later[0]])
    before = facts.seen.newest_step(facts.attempt)
    return facts.seen.first_seen[later[0]][resumed], max(0, before - resumed + 1)


def compare_losses(losses: dict[int, LossPair], base: dict[int, LossPair], steps: int) -> tuple[str, float]:
    """(word, greatest relative difference). Both loss and gradient norm of every step count."""
    if sorted(losses) != list(range(1, steps + 1)):
        return "missing", math.inf
    if any(step not in base for step in losses):
        return "missing", math.inf
    if all(losses[step] == base[step] for step in losses):
        return "equal", 0.0
    worst = 0.0
    for step, pair in losses.items():
        for mine, theirs in zip(pair, base[step], strict=True):
            if mine is None or theirs is None:
                worst = worst if mine == theirs else math.inf
            else:
                worst = max(worst, abs(mine - theirs) / max(abs(theirs), 1e-6))
    return ("close" if worst <= TOLERANCE else "different"), worst


def _named(found: Entry | None) -> str:
    if found is None or found.node is None:
        return ""
    return found.node if found.rank is None else f"{found.node} rank {found.rank}"


def _end_problems(facts: Facts) -> list[str]:
    if facts.state == "SUCCEEDED":
        return []
    return [f"the run ended {facts.state} ({facts.reason}) instead of training to its end"]


def _restart_problems(expect: Expect, restarts: int, facts: Facts) -> list[str]:
    problems = []
    if expect.restart == "yes" and restarts < 1:
        problems.append("nothing was started again")
    if expect.restart == "no" and restarts:
        problems.append(f"it was started again {restarts} times, though there was no need")
    if restarts and facts.smaller and facts.nodes_after >= facts.nodes_before:
        problems.append("it should have gone on with fewer nodes")
    if facts.smaller is False and facts.nodes_after < facts.nodes_before:
        problems.append(f"it went on with {facts.nodes_after} of {facts.nodes_before} nodes, though none was missing")
    return problems


def _detection_problems(expect: Expect, facts: Facts, found: Entry | None) -> list[str]:
    if found is None:
        return ["the supervisor never told that it detected anything"]
    problems = []
    took = found.time - facts.injection.time
    bound = facts.hang_timeout + HANG_MARGIN if expect.hang else expect.within
    if took > bound:
        problems.append(f"detected after {took:.1f} s, not within {bound:.0f} s")
    if expect.reasons and found.reason not in expect.reasons:
        problems.append(f"the reason given is {found.reason}, not {' or '.join(expect.reasons)}")
    right = found.node == facts.injection.node
    if expect.named == "rank":
        right = right and found.rank == facts.injection.rank
    if expect.named != "nobody" and not right:
        who = facts.injection.node if expect.named == "node" else f"{facts.injection.node} rank {facts.injection.rank}"
        problems.append(f"{_named(found) or 'nobody'} was named, not {who}")
    return problems


def _straggler_problems(expect: Expect, facts: Facts) -> list[str]:
    if not expect.straggler or facts.straggler == facts.injection.node:
        return []
    return [f"the metrics show {facts.straggler or 'nobody'} as the slow one, not {facts.injection.node}"]


def _loss_problems(word: str, worst: float, facts: Facts) -> list[str]:
    if facts.state != "SUCCEEDED":
        return []
    if word == "missing":
        absent = sorted(set(range(1, facts.steps + 1)) - set(facts.seen.final_losses()))
        return [f"steps {absent[:5]} are in no metrics file" if absent else "the undisturbed run lacks steps"]
    if word == "equal" or (word == "close" and facts.nodes_after < facts.nodes_before):
        return []
    return [f"losses differ from the undisturbed run's by up to {worst:.1e}"]


def _leftover_problems(facts: Facts) -> list[str]:
    problems = []
    if facts.logs.lost or facts.logs.doubled:
        problems.append(f"log bytes: {facts.logs.lost} lost, {facts.logs.doubled} doubled")
    for node, count in facts.left.items():
        if count:
            problems.append(f"{count} processes of the run are left on {node}")
    if facts.supervisor_left:
        problems.append("its supervisor is still at work")
    if facts.store != "ok":
        problems.append(f"the run store: {facts.store}")
    return problems

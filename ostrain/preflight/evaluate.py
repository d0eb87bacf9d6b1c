"""From a situation to verdicts. Pure."""

from __future__ import annotations

from dataclasses import replace

from ostrain.preflight.checks import CHECKS, Check
from ostrain.preflight.connection import as_verdict, line_of
from ostrain.preflight.situation import Situation
from ostrain.preflight.verdict import Level, Verdict, fail


def evaluate(situation: Situation) -> list[Verdict]:
    """Every line of every node, in the table's order. A node that could not be asked has one line: why."""
    verdicts: list[Verdict] = []
    for check in CHECKS:
        failed = [
            as_verdict(name, facts.error)
            for name, facts in situation.nodes.items()
            if facts.error is not None and line_of(facts.error) == check.name
        ]
        verdicts += failed
        if check.name in situation.wishes.config.skip:
            verdicts.append(Verdict("", Level.SKIP, "not looked at, as the job says", check=check.name))
        elif check.applies(situation):
            verdicts += [replace(verdict, check=check.name) for verdict in _of(check, situation)]
    return verdicts


def _of(check: Check, situation: Situation) -> list[Verdict]:
    told = list(check.function(situation))
    for part in check.parts[:1]:  # what else it reads has a line of its own
        for name, why in situation.unseen(part).items():
            told.append(fail(name, "could not be looked at", why, "run `ostrain check --fresh` again"))
    return told


def exit_code(verdicts: list[Verdict]) -> int:
    """0, or the gravest of the failed lines: 3, or 4 where a node cannot be reached."""
    return max((verdict.exit_code for verdict in verdicts if verdict.level is Level.FAIL), default=0)

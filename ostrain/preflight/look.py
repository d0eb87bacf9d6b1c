"""A preflight from end to end: ask every node at once, judge, remember what passed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cluster.backend import NodeError
from cluster.inspection import INSPECTOR, Inspection, Inspects
from ostrain.plan import LaunchPlan
from ostrain.preflight.checks import CHECKS
from ostrain.preflight.evaluate import evaluate, exit_code
from ostrain.preflight.remembered import LASTING, Memory
from ostrain.preflight.request import requests, wishes
from ostrain.preflight.situation import NodeFacts, Situation
from ostrain.preflight.verdict import Level, Verdict
from ostrain.spec.load import LoadedJob

Parts = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Preflight:
    """What came of it. age: seconds of the oldest remembered fact, 0 where all were asked now."""

    verdicts: list[Verdict]
    age: float

    @property
    def exit_code(self) -> int:
        return exit_code(self.verdicts)

    def of(self, *levels: Level) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.level in levels]


def look(
    loaded: LoadedJob, plan: LaunchPlan, backend: Inspects, *, fresh: bool = False, timeout: float = 60.0
) -> Preflight:
    """Check every node of a plan, spares among them. fresh: forget what was seen before. timeout: seconds a node."""
    plan = plan.everywhere()
    wanted = wishes(loaded, plan)
    asked = requests(loaded, plan, wanted)
    version = hashlib.sha256(INSPECTOR.read_bytes()).hexdigest()
    memories = {
        node.name: Memory(node.name, node.access, wanted.config.expire, inspector=version) for node in plan.nodes
    }
    known = {} if fresh else {name: _known(memories[name], parts) for name, parts in asked.items()}
    facts = _ask(plan, backend, asked, known, timeout)
    situation = Situation(plan, wanted, facts)
    verdicts = evaluate(situation)
    _remember(memories, asked, situation, verdicts)
    return Preflight(verdicts, max((age for one in facts.values() for age in one.ages.values()), default=0.0))


def _known(memory: Memory, parts: Parts) -> dict[str, tuple[dict[str, Any], float]]:
    found = {part: memory.known(part, parts[part]) for part in LASTING if part in parts}
    return {part: entry for part, entry in found.items() if entry is not None}


def _ask(
    plan: LaunchPlan,
    backend: Inspects,
    asked: Mapping[str, Parts],
    known: Mapping[str, dict[str, tuple[dict[str, Any], float]]],
    timeout: float,
) -> dict[str, NodeFacts]:
    """Facts of every node; remembered parts are not asked, unless the node was started anew since."""
    missing = {
        name: {"parts": {part: options for part, options in parts.items() if part not in known.get(name, {})}}
        for name, parts in asked.items()
    }
    answers = backend.inspect(plan, missing, timeout=timeout)
    return {node.name: _joined(node.name, answers[node.name], known.get(node.name, {})) for node in plan.nodes}


def _joined(name: str, answer: Inspection | NodeError, known: Mapping[str, tuple[dict[str, Any], float]]) -> NodeFacts:
    if isinstance(answer, NodeError):
        return NodeFacts(name, error=answer)
    parts = {**answer.parts, **{part: facts for part, (facts, _) in known.items()}}
    return NodeFacts(name, replace(answer, parts=parts), ages={part: age for part, (_, age) in known.items()})


def _remember(
    memories: Mapping[str, Memory], asked: Mapping[str, Parts], situation: Situation, verdicts: list[Verdict]
) -> None:
    """Keep what was asked now. A line that failed somewhere is asked anew everywhere: the odd node may be another."""
    bad = {verdict.check for verdict in verdicts if verdict.level is Level.FAIL}
    doubtful = {part for check in CHECKS if check.name in bad for part in check.parts}
    for name, facts in situation.nodes.items():
        if facts.inspection is None:
            continue
        told = facts.inspection.parts
        seen = {
            part: (asked[name][part], told[part])
            for part in LASTING
            if part in asked[name] and part not in facts.ages and "error" not in told.get(part, {"error": ""})
        }
        memories[name].keep(seen, doubtful, str(told.get("identity", {}).get("boot_id", "")))

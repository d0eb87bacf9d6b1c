"""Everything the checks judge by: the plan, what the job allows, what the nodes said. Pure data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cluster.backend import NodeError
from cluster.inspection import Inspection
from ostrain.plan import LaunchPlan
from ostrain.spec.check_config import CheckConfig

T = TypeVar("T", bound=Hashable)
ROOT = "."  # the node's root among the paths of a request


@dataclass(frozen=True)
class Wishes:
    """What the job wants of every node.

    config: its ``check`` section. checkpoint: bytes of a checkpoint that one node writes, 0 where none are planned;
    checkpoint_path: where, ``.`` for the root. files: paths on the nodes that the job names -> the key that names them.
    code: what is pushed, ``bundles/<hash>`` and ``files/<hash>`` -> (its name in the job, hash of its content).
    several: the job spans nodes. handed: variables that launch.sh sets itself, whatever a set-up script says.
    """

    config: CheckConfig = field(default_factory=CheckConfig)
    checkpoint: int = 0
    checkpoint_path: str = ROOT
    files: Mapping[str, str] = field(default_factory=dict)
    code: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    several: bool = False
    handed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class NodeFacts:
    """What one node said, or why it could not be asked. ages: seconds since a part was asked, for remembered ones."""

    name: str
    inspection: Inspection | None = None
    error: NodeError | None = None
    ages: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Situation:
    """The nodes of a plan, in its order."""

    plan: LaunchPlan
    wishes: Wishes
    nodes: Mapping[str, NodeFacts]

    @property
    def ascend(self) -> bool:
        return self.plan.device.lower() == "ascend"

    def answering(self) -> Iterator[tuple[str, Inspection]]:
        for name, facts in self.nodes.items():
            if facts.inspection is not None:
                yield name, facts.inspection

    def told(self, part: str) -> dict[str, dict[str, Any]]:
        """Node -> facts of a part, of the nodes where it could be looked at."""
        parts = {name: seen.parts.get(part) for name, seen in self.answering()}
        return {name: facts for name, facts in parts.items() if isinstance(facts, dict) and "error" not in facts}

    def unseen(self, part: str) -> dict[str, str]:
        """Node -> why a part could not be looked at there."""
        parts = {name: seen.parts.get(part, {"error": "not asked"}) for name, seen in self.answering()}
        return {name: str(facts["error"]) for name, facts in parts.items() if "error" in facts}


def odd_ones(values: Mapping[str, T]) -> tuple[T | None, dict[str, T]]:
    """The commonest value (the first node's among equals), and the nodes that have another."""
    if not values:
        return None, {}
    common = Counter(values.values()).most_common(1)[0][0]
    return common, {name: value for name, value in values.items() if value != common}


def output_of(told: Any) -> tuple[str, str]:
    """Output of a tool on a node, and why there is none."""
    if not isinstance(told, dict):
        return "", "not asked"
    if "missing" in told:
        return "", f"there is no {told['missing']} on the node's PATH"
    if "timeout" in told:
        return "", f"it did not end within {told['timeout']:g} s"
    if "error" in told:
        return "", str(told["error"])
    text = str(told.get("out", ""))
    if told.get("code"):
        words = (str(told.get("err", "")).strip() or text.strip()).splitlines()
        return "", f"exit {told['code']}" + (f": {words[-1][:200]}" if words else "")
    return text, ""

"""What follows from a fault, by its reason: one table. ``docs/recovery.md`` shows it; a test keeps the two equal.

Beyond the table there are log policies: a line in the logs of a failed attempt can overrule it (a device that reports
broken memory is not tried again; a rank table that HCCL refuses will be refused the next time, too).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Action(str, Enum):
    """What the table says of a reason."""

    RETRY = "retry on the same nodes"
    EXCLUDE = "exclude the node"
    NEVER = "never"


@dataclass(frozen=True)
class Rule:
    """One reason. ``own_error``: the program ended by itself, so the same again at the same step is no accident."""

    reason: str
    action: Action
    why: str
    own_error: bool = False


_RULES = (
    Rule("worker_killed", Action.RETRY, "an accident of one process: somebody's kill, the kernel's out-of-memory"),
    Rule("worker_failed", Action.RETRY, "often a connection that broke; given up when it fails at the same step", True),
    Rule("launcher_failed", Action.RETRY, "a port taken meanwhile, a scheduler that did not come up", True),
    Rule("launcher_killed", Action.RETRY, "an accident of one process"),
    Rule("agent_lost", Action.RETRY, "an accident of one process"),
    Rule("node_rebooted", Action.RETRY, "the node is back"),
    Rule("hung", Action.RETRY, "the processes are new afterwards; a second time the suspect's node is excluded"),
    Rule("start_failed", Action.RETRY, "the nodes are asked again, another port is picked"),
    Rule("peer_failed", Action.RETRY, "a consequence of a fault that nobody recorded"),
    Rule("slurm_timeout", Action.RETRY, "the next attempt goes on from the newest checkpoint"),
    Rule("slurm_preempted", Action.RETRY, "the nodes were wanted by somebody else; others may be free"),
    Rule("slurm_node_fail", Action.RETRY, "Slurm does not give that node again"),
    Rule("service_failed", Action.RETRY, "a service that restarts jobs does so by itself"),
    Rule("service_stopped", Action.NEVER, "a person or the running time that was set ended it"),
    Rule("superseded", Action.RETRY, "a start that was given up half way"),
    Rule("node_lost", Action.EXCLUDE, "nothing runs on a node that does not answer"),
    Rule("disk_full", Action.EXCLUDE, "the next attempt would fill it, too; other nodes have space"),
    Rule("survivors", Action.EXCLUDE, "processes that outlive SIGKILL hold its devices"),
    Rule("not_finite", Action.NEVER, "the same numbers come out of the same checkpoint"),
    Rule("bad_config", Action.NEVER, "only a person can correct it"),
    Rule("bad_data", Action.NEVER, "only a person can correct it"),
    Rule("bad_checkpoint", Action.NEVER, "nothing starts from zero unasked"),
    Rule("cancelled", Action.NEVER, "a person wanted it"),
)
RULES: dict[str, Rule] = {rule.reason: rule for rule in _RULES}

# Reasons that a node has of its own: beside one of them, a generic failure elsewhere is a consequence.
SPECIFIC = frozenset(
    ["worker_killed", "agent_lost", "node_rebooted", "node_lost", "disk_full", "hung", "not_finite", "survivors"]
)
# A fault of the same node so many times in a row makes the node the fault.
SAME_NODE = 2


def rule_of(reason: str) -> Rule:
    """The rule of a reason; unknown ones (of a newer agent) are never retried."""
    return RULES.get(reason) or Rule(reason, Action.NEVER, "this version does not know that reason")


@dataclass(frozen=True)
class LogPolicy:
    """A regular expression over log lines. action: ``exclude_node`` (where the line stood) or ``stop``."""

    pattern: str
    action: str
    message: str


# Codes and texts of HCCL and CANN that say by themselves what will help.
ASCEND_POLICIES = (
    LogPolicy(r"\bEI0012\b", "exclude_node", "SDMA error (EI0012): a device's copy engine failed"),
    LogPolicy(r"\bEI0013\b", "exclude_node", "RoCE CQE error (EI0013): a device's network port failed"),
    LogPolicy(
        r"(?i)(hbm|ddr|device memory).{0,40}(multi[- ]?bit|uncorrectable).{0,20}(ecc|error)",
        "exclude_node",
        "uncorrectable memory error of a device",
    ),
    LogPolicy(r"\b80E01801\b", "exclude_node", "uncorrectable memory error of a device (80E01801)"),
    LogPolicy(r"\bEI0001\b", "stop", "an environment variable that HCCL refuses (EI0001)"),
    LogPolicy(r"\bEI0004\b", "stop", "a rank table that HCCL refuses (EI0004): ostrain ranktable check"),
    LogPolicy(r"\bEI0008\b", "stop", "HCCL versions of the nodes differ (EI0008): ostrain check"),
    LogPolicy(r"\bEI0014\b", "stop", "a rank table that does not fit the nodes (EI0014): ostrain ranktable check"),
)


@dataclass(frozen=True)
class LogFinding:
    """A line that a log policy fits."""

    policy: LogPolicy
    node: str
    path: str
    line: str


def policies_of(restart: Mapping[str, Any]) -> tuple[LogPolicy, ...]:
    """The job's own policies first, then the preset ones."""
    own = [LogPolicy(one["pattern"], one["action"], one.get("message", "")) for one in restart.get("log_policies", ())]
    return (*own, *ASCEND_POLICIES)


def match_line(policies: Sequence[LogPolicy], node: str, path: str, lines: Iterable[str]) -> LogFinding | None:
    """The first policy (in their order) that a line fits."""
    texts = list(lines)
    for policy in policies:
        pattern = re.compile(policy.pattern)
        for line in texts:
            if pattern.search(line):
                return LogFinding(policy, node, path, line.strip()[:500])
    return None


def policy_table() -> str:
    """The table of docs/recovery.md."""
    rows = ["| reason | action | why |", "|---|---|---|"]
    return "\n".join(rows + [f"| {rule.reason} | {rule.action.value} | {rule.why} |" for rule in _RULES])


def log_policy_table() -> str:
    """The preset log policies, for docs/recovery.md."""
    rows = ["| a line with | action | what is told |", "|---|---|---|"]
    shown = [(one.pattern.replace("|", "\\|"), one.action, one.message) for one in ASCEND_POLICIES]
    return "\n".join(rows + [f"| `{pattern}` | {action} | {message} |" for pattern, action, message in shown])

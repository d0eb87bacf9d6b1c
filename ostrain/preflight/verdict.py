"""One line of a preflight."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from ostrain.states import ExitCode


class Level(str, Enum):
    """How a line ends. SKIP: the job says not to look."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"
    SKIP = "skip"


@dataclass(frozen=True)
class Verdict:
    """What one check says of one node. ``check`` is filled in by whoever runs the check."""

    node: str
    level: Level
    what: str
    why: str = ""
    next_step: str = ""
    exit_code: int = int(ExitCode.PREFLIGHT)
    check: str = ""

    def as_dict(self) -> dict[str, Any]:
        words = {"check": self.check, "node": self.node, "verdict": self.level.value.lower()}
        return {**words, "what": self.what, "why": self.why, "next": self.next_step}


def ok(node: str, what: str) -> Verdict:
    return Verdict(node, Level.OK, what)


def warn(node: str, what: str, why: str = "", next_step: str = "") -> Verdict:
    return Verdict(node, Level.WARN, what, why, next_step)


def fail(node: str, what: str, why: str = "", next_step: str = "") -> Verdict:
    return Verdict(node, Level.FAIL, what, why, next_step)

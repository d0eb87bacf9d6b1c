"""What a check finds, how it is told, and the limit on how much of the same is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from ostrain.ranktable.locate import Path
from ostrain.ranktable.rules import RULES, Level, Rule
from ostrain.spec.problems import Mark, Problem

# One mistake of a generator stands in thousands of lines: this many are shown.
SHOWN_OF_A_KIND = 3


class Placed(Protocol):
    """Something with places: a document, or several merged into one."""

    def mark(self, path: Path) -> Mark: ...

    def key_mark(self, path: Path) -> Mark: ...


@dataclass(frozen=True)
class Finding:
    """A broken rule at a path of the data. ``on_key``: the key is meant, not its value."""

    rule: Rule
    path: Path
    message: str
    next_step: str
    level: Level
    on_key: bool = False


@dataclass
class Findings:
    """Everything found so far."""

    all: list[Finding] = field(default_factory=list)

    def add(
        self,
        rule: str,
        path: Path,
        message: str,
        *,
        next_step: str = "",
        level: Level | None = None,
        on_key: bool = False,
    ) -> None:
        known = RULES[rule]
        self.all.append(Finding(known, path, message, next_step or known.next_step, level or known.level, on_key))

    def of(self, level: Level) -> list[Finding]:
        return [finding for finding in self.all if finding.level == level]

    @property
    def errors(self) -> list[Finding]:
        return self.of("error")


def quoted(value: object, limit: int = 60) -> str:
    """A value for a message: JSON's words, nothing unprintable, not endless."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = str(value)
    text = text[: limit + 1]
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in text)
    text = text if len(text) <= limit else text[:limit] + "…"
    return f'"{text}"' if isinstance(value, str) else text


def place(finding: Finding, placed: Placed) -> Mark:
    return placed.key_mark(finding.path) if finding.on_key else placed.mark(finding.path)


def rendered(findings: list[Finding], placed: Placed) -> Iterator[str]:
    """Findings in the order of the file, a few of each kind, with the line they stand in, HCCL's words, what to do."""
    marked = sorted(((place(finding, placed), finding) for finding in findings), key=lambda pair: pair[0].order)
    told: Counter[str] = Counter()
    for mark, finding in marked:
        told[finding.rule.name] += 1
        if told[finding.rule.name] <= SHOWN_OF_A_KIND:
            yield _text(mark, finding)
    for name, count in told.items():
        if count > SHOWN_OF_A_KIND:
            yield f"… and {count - SHOWN_OF_A_KIND} more of {name}; --json lists all"


def _text(mark: Mark, finding: Finding) -> str:
    first, *rest = Problem(mark, f"{finding.level}: {finding.message}").render().split("\n", 1)
    lines = [first, *rest]
    if finding.rule.hccl:
        lines.append(f"    HCCL: {finding.rule.hccl}")
    lines.append(f"    next: {finding.next_step}")
    return "\n".join(lines)


def as_json(finding: Finding, placed: Placed) -> dict[str, Any]:
    mark = place(finding, placed)
    return {
        "level": finding.level,
        "rule": finding.rule.name,
        "codes": list(finding.rule.codes),
        "file": mark.source.name,
        "line": mark.line + 1,
        "column": mark.column + 1,
        "path": list(finding.path),
        "message": finding.message,
        "hccl": finding.rule.says,
        "next": finding.next_step,
    }

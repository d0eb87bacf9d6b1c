"""Attempts, faults, recoveries and checkpoints of a run in the order they happened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ostrain.top.events import Told, told

_KINDS = {
    "fault": "fault", "checkpoint_saved": "checkpoint", "resumed": "recovery", "started": "start", "ended": "end",
}  # fmt: skip


@dataclass(frozen=True)
class Moment:
    """kind: fault, checkpoint, recovery, start, end, supervisor or other."""

    time: float
    attempt: int
    who: str
    text: str
    kind: str


@dataclass(frozen=True)
class Stretch:
    """An attempt from its first to its last sign."""

    attempt: int
    start: float
    end: float
    outcome: str
    bad: bool


@dataclass(frozen=True)
class Checkpoint:
    """A written checkpoint, as its first rank told. there: nodes that still have it."""

    step: int
    time: float
    attempt: int
    bytes: int | None
    seconds: float | None
    there: int


def moments_of(events: Sequence[tuple[str, dict[str, Any]]], journal: Sequence[Told]) -> list[Moment]:
    """Everything worth a line, in order of time."""
    found = []
    for node, record in events:
        one = told(node, record)
        if one is not None:
            kind = _KINDS.get(str(record.get("event")), "other")
            found.append(Moment(one.time, _attempt(record), one.who, one.text, kind))
    found += [Moment(one.time, 0, one.who, one.text, "fault" if one.bad else "supervisor") for one in journal]
    return sorted(found, key=lambda moment: moment.time)


def stretches_of(events: Sequence[tuple[str, dict[str, Any]]], now: float, final: bool) -> list[Stretch]:
    """Of every attempt that left events; the newest lasts until ``now`` while it is not ``final``."""
    times: dict[int, list[float]] = {}
    outcomes: dict[int, str] = {}
    bad: set[int] = set()
    for _, record in events:
        if isinstance(record.get("time"), int | float):
            attempt = _attempt(record)
            times.setdefault(attempt, []).append(float(record["time"]))
            if record.get("event") == "ended":
                state, reason = str(record.get("state")), str(record.get("reason"))
                if attempt not in bad:
                    outcomes[attempt] = f"{state} ({reason})"
                if state == "FAILED":
                    bad.add(attempt)
    newest = max(times, default=0)
    return [
        Stretch(
            attempt, min(seen), now if attempt == newest and not final else max(seen),
            outcomes.get(attempt, "no end recorded" if final or attempt != newest else "at work"), attempt in bad,
        )
        for attempt, seen in sorted(times.items())
    ]  # fmt: skip


def checkpoints_of(
    events: Sequence[tuple[str, dict[str, Any]]], statuses: Mapping[str, Mapping[str, Any]]
) -> list[Checkpoint]:
    """By step; the last writing counts."""
    there: dict[int, int] = {}
    for status in statuses.values():
        for step in status.get("checkpoints") or []:
            there[step] = there.get(step, 0) + 1
    found: dict[int, Checkpoint] = {}
    for _, record in events:
        step, when = record.get("step"), record.get("time")
        if record.get("event") == "checkpoint_saved" and isinstance(step, int) and isinstance(when, int | float):
            size, seconds = record.get("bytes"), record.get("seconds")
            found[step] = Checkpoint(
                step, float(when), _attempt(record), size if isinstance(size, int) else None,
                float(seconds) if isinstance(seconds, int | float) else None, there.get(step, 0),
            )  # fmt: skip
    return [found[step] for step in sorted(found)]


def _attempt(record: Mapping[str, Any]) -> int:
    attempt = record.get("attempt")
    return attempt if isinstance(attempt, int) else 0

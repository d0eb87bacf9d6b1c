"""Which events of nodes and of the supervisor are worth a line, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Told:
    """time: seconds since the epoch by the clock of whoever told it; bad: a fault."""

    time: float
    who: str
    text: str
    bad: bool = False


def told(node: str, record: dict[str, Any]) -> Told | None:
    """The line of an event of ``events.jsonl``; None for those that are not told."""
    name, when = str(record.get("event")), record.get("time")
    words = _WORDS.get(name)
    if words is None or not isinstance(when, int | float):
        return None
    text, bad = words(record)
    return Told(float(when), node, text, bad) if text else None


def from_journal(entry: Any) -> Told:
    """The line of an entry of the supervisor's journal (ostrain.supervisor.journal.Entry)."""
    place = f"node {entry.node}" if entry.node else ""
    place += f" rank {entry.rank}" if entry.rank is not None else ""
    parts = [entry.event.replace("_", " "), place.strip(), entry.reason, entry.detail]
    text = " ".join(part for part in parts if part)
    return Told(entry.time, "supervisor", text, entry.event in ("detected", "stuck", "fenced", "gave_up"))


def supervisor_lines(run_id: str) -> list[Told]:
    """The supervisor's journal of a run; [] where it has none or cannot be read."""
    from ostrain.supervisor.journal import read_journal

    try:
        return [from_journal(entry) for entry in read_journal(run_id)]
    except OSError:
        return []


def _fault(record: dict[str, Any]) -> tuple[str, bool]:
    fault = record.get("fault") or {}
    who = f"rank {fault['rank']}: " if fault.get("rank") is not None else ""
    what = (fault.get("message") or {}).get("what") or ""
    how = fault.get("signal") or (f"exit {fault['exit_code']}" if fault.get("exit_code") is not None else "")
    return f"{who}{fault.get('reason', 'fault')} {how} {what}".strip(), True


def _ended(record: dict[str, Any]) -> tuple[str, bool]:
    return f"{record.get('state')}: {record.get('reason')}", record.get("state") == "FAILED"


def _validated(record: dict[str, Any]) -> tuple[str, bool]:
    loss = record.get("loss")
    return f"validated step {record.get('step')}" + (f" loss {loss:.4f}" if isinstance(loss, float) else ""), False


_WORDS: dict[str, Callable[[dict[str, Any]], tuple[str, bool]]] = {
    "fault": _fault,
    "ended": _ended,
    "validated": _validated,
    "started": lambda record: (f"attempt {record.get('attempt')} started", False),
    "resumed": lambda record: (f"resumed from step {record.get('step')}", False),
    "checkpoint_saved": lambda record: (f"checkpoint of step {record.get('step')}", False),
    "clip_skipped": lambda record: (f"clip skipped: {record.get('path')}: {record.get('reason')}", False),
    "train_finished": lambda record: ("training finished", False),
}

"""What the supervisor of a run saw and did: ``supervisor.jsonl`` in the state folder, one JSON object a line.

Append-only, every line synced. The supervisor may be killed at any byte: a last line without its end is no entry, and
the next supervisor begins a line of its own.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ostrain.paths import state_dir

FILE = "supervisor.jsonl"
# event -> what it tells; docs/recovery.md shows them.
EVENTS = {
    "supervising": "a supervisor has taken the run over; detail: its pid, and whether one before it died",
    "unreachable": "a node does not answer; nothing is concluded from that yet",
    "answers": "that node answers again",
    "detected": "a fault: node, rank and reason of the first one of the attempt",
    "stuck": "who holds the others up: node, rank and the frame it is in",
    "evidence": "a line in the attempt's logs that a log policy fits; it decides",
    "decided": "what follows from it: restart, exclude_node, shrink or give_up, and why",
    "stopped": "what was left of the attempt is ended on the nodes that answer",
    "fenced": "a node is given up; nothing it still runs can come back into the run",
    "fence_closed": "a fenced node answered: its old attempt is ended, it may serve as a spare",
    "drained": "devices are free and no process of the run is left",
    "copied": "pieces of a checkpoint were brought to a node that lacked them",
    "shrunk": "the run goes on with fewer nodes; detail: the layout",
    "restarting": "the next attempt is being put on its nodes",
    "restarted": "every agent of the new attempt has started its launcher",
    "recovered": "the new attempt has made its first step",
    "gave_up": "no further attempt; reason: that of the last fault",
    "ended": "the run has ended, or somebody else has taken it",
}


@dataclass(frozen=True)
class Entry:
    """One line. time: seconds since the epoch on the submitter's clock; attempt: the one it is about; node, rank: None
    where it concerns none; reason: a word of docs/runs.md or ""; more: further facts of the event."""

    time: float
    attempt: int
    event: str
    node: str | None = None
    rank: int | None = None
    reason: str = ""
    detail: str = ""
    more: dict[str, Any] = field(default_factory=dict)


def folder(run_id: str) -> Path:
    """Where a run's supervisor keeps its journal and its log."""
    return state_dir() / "supervisors" / run_id


class Journal:
    """Appends to a run's journal."""

    def __init__(self, run_id: str) -> None:
        self.path = folder(run_id) / FILE

    def write(
        self,
        attempt: int,
        event: str,
        *,
        node: str | None = None,
        rank: int | None = None,
        reason: str = "",
        detail: str = "",
        **more: Any,
    ) -> Entry:
        """Append an entry and sync it. OSError where the state folder cannot be written."""
        if event not in EVENTS:
            raise ValueError(f"no event {event!r} in supervisor.jsonl")
        entry = Entry(time.time(), attempt, event, node, rank, reason, detail, more)
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            size = os.fstat(handle).st_size
            cut_off = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            line = json.dumps(asdict(entry), ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n"
            os.write(handle, (b"\n" if cut_off else b"") + line)
            os.fsync(handle)
        finally:
            os.close(handle)
        return entry


def read_journal(run_id: str) -> list[Entry]:
    """Every whole entry of a run, oldest first; empty where it was never supervised."""
    try:
        data = (folder(run_id) / FILE).read_bytes()
    except FileNotFoundError:
        return []
    return list(_entries(data))


def _entries(data: bytes) -> Iterator[Entry]:
    for line in data.split(b"\n")[:-1]:
        try:
            record = json.loads(line.decode("utf-8", "replace"))
            yield Entry(**{key: record[key] for key in Entry.__dataclass_fields__ if key in record})
        except (ValueError, TypeError):
            continue  # cut off by a kill; the entry after it stands on a line of its own

"""Watching a run to its end in the foreground: its steps as they happen, its faults, and who has to be stopped.

The watcher is never the parent of anything: it reads what the nodes write. Killed, it loses nothing; started again,
it sees everything from the first step.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cluster.backend import Backend, Chunk, FollowLost, NodeNews, RunRef
from ostrain.logs import LineAssembler
from ostrain.states import State
from ostrain.status import RunStatus, refresh
from ostrain.store import Run, Store

PATTERNS = ("metrics/rank-*.jsonl", "events.jsonl")


@dataclass(frozen=True)
class Step:
    """One line of ``metrics/rank-0.jsonl``."""

    record: dict[str, Any]


@dataclass(frozen=True)
class Event:
    """One line of a node's ``events.jsonl``."""

    node: str
    record: dict[str, Any]


@dataclass(frozen=True)
class Notice:
    """Something to tell that is not in the files: a lost stream, a node being stopped."""

    text: str


@dataclass(frozen=True)
class Phase:
    """What the run's first worker is at: starting, loading, compiling, step, saving, done (its heartbeat)."""

    name: str


News = Step | Event | Notice | Phase


def watch(store: Store, backend: Backend, run: Run) -> Iterator[News]:
    """Yield what happens until the run is final on every node. When a node fails, the others are stopped at once:
    they could only wait for it."""
    ref = RunRef(run.run_id, run.plan)
    assembler = LineAssembler()
    stopping, phase = False, ""
    for item in backend.follow(ref, {}, PATTERNS):
        if isinstance(item, NodeNews) and (now := _phase(item, run.attempt)) not in ("", phase):
            phase = now
            yield Phase(phase)
        if isinstance(item, Chunk):
            yield from lines_of(assembler, item)
        elif isinstance(item, FollowLost):
            state = "is given up" if item.final else "is tried again"
            yield Notice(f"node {item.node}: the stream broke and {state}: {item.error.what}")
        elif isinstance(item, NodeNews) and not stopping and _failed(item, run.attempt):
            stopping = True
            refresh(store, run, backend)
            if len(run.plan.nodes) > 1:
                yield Notice(f"node {item.node} failed; stopping the other nodes")
                backend.stop(ref, grace=5.0, reason="peer_failed")


def _failed(news: NodeNews, attempt: int) -> bool:
    return news.status.get("state") == State.FAILED.value and news.status.get("attempt") == attempt


def _phase(news: NodeNews, attempt: int) -> str:
    """The phase of rank 0, or "" on a node that does not have it."""
    beat = (news.status.get("heartbeat") or {}).get("0") or {}
    return str(beat.get("phase", "")) if news.status.get("attempt") == attempt else ""


def lines_of(assembler: LineAssembler, chunk: Chunk) -> Iterator[News]:
    """The steps and events that a chunk completes."""
    for line in assembler.feed(chunk):
        try:
            record = json.loads(line.text)
        except ValueError:
            # A line that a killed writer left unfinished; the next attempt's lines follow it.
            continue
        if not isinstance(record, dict):
            continue
        if chunk.path == "events.jsonl":
            yield Event(chunk.node, record)
        elif chunk.path == "metrics/rank-0.jsonl":
            yield Step(record)


def settle(store: Store, backend: Backend, run: Run) -> RunStatus:
    """The status after the end of a follow."""
    return refresh(store, store.get(run.run_id), backend)

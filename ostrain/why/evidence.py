"""What the nodes of a run know about an attempt, brought here: ends of all logs, events, worker records, metrics, the
driver's logs, and how far each node's clock is off.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.backend import Backend, Chunk, FollowLost, NodeError, RunRef
from ostrain.errors import OstrainError

# Bytes of all logs together, and the least and the most of one: a thousand ranks must not mean a gigabyte.
TOTAL = 64 << 20
LEAST, MOST = 16 << 10, 1 << 20


@dataclass(frozen=True)
class Clock:
    """A node's clock beside this machine's.

    offset: seconds that the node is ahead. uncertainty: half of what the question and the answer took together: the
    offset lies within it. None where the node did not say when it was asked. utc_offset: of its local time.
    """

    offset: float = 0.0
    uncertainty: float | None = None
    utc_offset: float = 0.0


@dataclass(frozen=True)
class LogText:
    """The end of a file of a node, as text. ``cut``: bytes left out before it."""

    text: str
    cut: int = 0


@dataclass
class Evidence:
    """Everything about one attempt. Files by node and by path in the run directory; the driver's logs, which may lie
    elsewhere, by their own paths, with the rank whose process wrote them."""

    run: RunRef
    attempt: int
    clocks: dict[str, Clock] = field(default_factory=dict)
    statuses: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, dict[str, LogText]] = field(default_factory=dict)
    plogs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    kernel: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    journal: list[dict[str, Any]] = field(default_factory=list)
    unreachable: dict[str, str] = field(default_factory=dict)

    def clock(self, node: str) -> Clock:
        return self.clocks.get(node, Clock())

    def records(self, node: str, folder: str) -> list[dict[str, Any]]:
        """JSON objects of the files in a folder of the attempt (``workers`` or ``faults``), each with its rank."""
        found = []
        for path, text in sorted(self.files.get(node, {}).items()):
            match = re.fullmatch(rf"{folder}/attempt-{self.attempt}/(?:rank-(\d+)|scheduler)\.json", path)
            record = _object(text.text) if match else None
            if match and record is not None:
                found.append({"rank": int(match[1]) if match[1] else None, **record})
        return found

    def lines(self, node: str, path: str) -> list[dict[str, Any]]:
        """JSON objects of a file's lines; a line that was cut off is none."""
        text = self.files.get(node, {}).get(path)
        rows = [_object(line) for line in text.text.splitlines()] if text is not None else []
        return [row for row in rows if row is not None]


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def patterns(attempt: int) -> tuple[str, ...]:
    """Files of a run directory that tell of an attempt."""
    folders = tuple(f"{folder}/attempt-{attempt}/*" for folder in ("workers", "faults"))
    return (f"logs/attempt-{attempt}/*.log", *folders, "events.jsonl", "metrics/rank-*.jsonl", "heartbeat/rank-*")


def gather(
    backend: Backend, run: RunRef, attempt: int, *, more: tuple[str, ...] = (), timeout: float = 30.0
) -> Evidence:
    """Ask every node, spares and nodes given up among them. One that does not answer is in ``unreachable``; never
    raises because of one. more: globs of further files to bring."""
    plan = dataclasses.replace(run.plan, nodes=(*run.plan.nodes, *run.plan.spares), spares=())
    evidence = Evidence(RunRef(run.run_id, plan), attempt)
    evidence.journal = read_supervision(run.run_id)
    _ask_clocks(backend, evidence, timeout)
    if not evidence.statuses:
        return evidence
    wanted = tuple(dict.fromkeys((*patterns(attempt), *more)))
    _read_files(backend, evidence, _cursors(backend, evidence, wanted, timeout), wanted)
    _read_driver_logs(backend, evidence, timeout)
    return evidence


def _ask_clocks(backend: Backend, evidence: Evidence, timeout: float) -> None:
    """Ask twice: the first answer may have waited for a connection."""
    for _ in range(2):
        for name, answer in backend.poll(evidence.run, timeout=timeout).items():
            if isinstance(answer, NodeError):
                if answer.kind != "no_run":  # a spare that never had it
                    evidence.unreachable[name] = answer.what
                continue
            evidence.unreachable.pop(name, None)
            evidence.statuses[name] = answer
            told, known = read_clock(answer), evidence.clocks.get(name)
            better = known is None or (told.uncertainty or 1e9) < (known.uncertainty or 1e9)
            evidence.clocks[name] = told if better or known is None else known


def read_clock(status: Mapping[str, Any]) -> Clock:
    """A node's clock from one question: asked and answered by our clock, told by the node's in between.

    Half of the round trip is taken for the way back; the truth lies within that half on either side.
    """
    utc_offset = float(status.get("utc_offset") or 0.0)
    asked, answered, told = status.get("asked"), status.get("answered"), status.get("time")
    if asked is None or answered is None or told is None:
        return Clock(0.0, None, utc_offset)
    return Clock(told - (asked + answered) / 2, (answered - asked) / 2, utc_offset)


def _cursors(
    backend: Backend, evidence: Evidence, wanted: tuple[str, ...], timeout: float
) -> dict[str, dict[str, int]]:
    """Where to start reading each file, so that all ends together stay within TOTAL."""
    sizes: dict[str, dict[str, int]] = {}
    for name, answer in backend.files(evidence.run, wanted, timeout=timeout).items():
        if not isinstance(answer, NodeError):
            sizes[name] = {path: int(facts["size"]) for path, facts in answer.items()}
    share = TOTAL // max(1, sum(map(len, sizes.values())))
    bound = max(LEAST, min(MOST, share))
    return {name: {path: size - bound for path, size in paths.items() if size > bound} for name, paths in sizes.items()}


def _read_files(
    backend: Backend, evidence: Evidence, cursors: Mapping[str, Mapping[str, int]], wanted: tuple[str, ...]
) -> None:
    parts: dict[tuple[str, str], list[str]] = {}
    for item in backend.follow(evidence.run, cursors, wanted, until_final=False):
        if isinstance(item, Chunk):
            parts.setdefault((item.node, item.path), []).append(item.text)
        elif isinstance(item, FollowLost) and item.final and item.error.kind != "no_run":
            evidence.unreachable[item.node] = item.error.what
    for (node, path), texts in parts.items():
        cut = cursors.get(node, {}).get(path, 0)
        text = "".join(texts).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        if cut:  # what stands before the first line end is the rest of a line
            head, _, rest = text.partition("\n")
            text, cut = rest, cut + len(head.encode()) + 1
        evidence.files.setdefault(node, {})[path] = LogText(text, cut)


def _read_driver_logs(backend: Backend, evidence: Evidence, timeout: float) -> None:
    """Backends without agents have none."""
    ask = getattr(backend, "evidence", None)
    if ask is None:
        return
    for name, answer in ask(evidence.run, evidence.attempt, timeout=timeout).items():
        if not isinstance(answer, NodeError):
            evidence.plogs[name] = list(answer.get("plogs") or [])
            evidence.kernel[name] = list(answer.get("kernel") or [])


def read_supervision(run_id: str) -> list[dict[str, Any]]:
    """What the run's supervisor wrote, if it has one; an unreadable journal is no reason to tell nothing else."""
    from dataclasses import asdict

    from ostrain.supervisor.journal import read_journal

    try:
        return [asdict(entry) for entry in read_journal(run_id)]
    except (OSError, OstrainError):
        return []


def metrics_by_rank(evidence: Evidence) -> dict[int, list[dict[str, Any]]]:
    """Lines of ``metrics/rank-N.jsonl`` of the attempt, by rank."""
    found: dict[int, list[dict[str, Any]]] = {}
    for node, files in evidence.files.items():
        for path in files:
            name = path.removeprefix("metrics/rank-").removesuffix(".jsonl")
            if path.startswith("metrics/") and name.isdigit():
                rows: Iterable[dict[str, Any]] = evidence.lines(node, path)
                found[int(name)] = [row for row in rows if row.get("attempt") in (None, evidence.attempt)]
    return found

"""Whether followed logs are whole: every line the workers wrote shown once, by `ostrain logs -f` beside the drill."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cluster.backend import Backend, NodeError, RunRef
from ostrain.drill.commands import Commands
from ostrain.plan import LaunchPlan

LAST_LINES = 20.0  # seconds a follow has to end by itself once the run has


@dataclass(frozen=True)
class LogLoss:
    """Bytes of worker logs that a follow did not show, or showed again. unread: nodes whose logs are out of reach."""

    written: int = 0
    lost: int = 0
    doubled: int = 0
    unread: tuple[str, ...] = ()


@dataclass
class LogFollowers:
    """One ``ostrain logs -f --attempt K`` an attempt, each into a file."""

    commands: Commands
    run_id: str
    _children: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def follow(self, attempt: int) -> None:
        """Begin with an attempt, unless it is followed already."""
        if attempt not in self._children:
            words = ["logs", self.run_id, "-f", "--attempt", str(attempt)]
            self._children[attempt] = self.commands.start(words, f"logs-{attempt}")

    def finish(self) -> dict[int, Path]:
        """End them; attempt -> what was shown."""
        for child in self._children.values():
            self.commands.end(child, LAST_LINES)
        return {attempt: self.commands.folder / f"logs-{attempt}.out" for attempt in self._children}


def compare(shown: Mapping[str, list[str]], written: Mapping[str, list[str]], unread: Iterable[str] = ()) -> LogLoss:
    """Compare lines by prefix (``node/rank``). Lines of nodes that cannot be read any more are not counted."""
    lost = doubled = size = 0
    for prefix, lines in written.items():
        there, seen = Counter(lines), Counter(shown.get(prefix, []))
        size += _bytes(there)
        lost += _bytes(there - seen)
        doubled += _bytes(seen - there)
    return LogLoss(size, lost, doubled, tuple(unread))


def _bytes(lines: Counter[str]) -> int:
    return sum((len(line.encode("utf-8", "surrogateescape")) + 1) * count for line, count in lines.items())


def read_shown(path: Path) -> dict[str, list[str]]:
    """Lines that a follow printed, by prefix."""
    found: dict[str, list[str]] = {}
    for line in path.read_bytes().decode("utf-8", "surrogateescape").split("\n"):
        prefix, mark, text = line.partition(" | ")
        if mark:
            found.setdefault(prefix, []).append(text)
    return found


def read_written(
    backend: Backend, run_id: str, plans: Iterable[LaunchPlan], attempt: int
) -> tuple[dict[str, list[str]], set[str]]:
    """Worker logs of an attempt as they lie on the nodes, by prefix; and the nodes that cannot be read."""
    found: dict[str, list[str]] = {}
    unread: set[str] = set()
    for plan in plans:
        ref = RunRef(run_id, plan)
        for node, files in backend.files(ref, (f"logs/attempt-{attempt}/worker_*.log",), timeout=15.0).items():
            if isinstance(files, NodeError):
                if files.kind != "no_run":
                    unread.add(node)
                continue
            for path in files:
                rank = path.rpartition("_")[2].partition(".")[0]
                text = backend.fetch(ref, node, path).decode("utf-8", "surrogateescape")
                lines = text.split("\n")
                found[f"{node}/{rank}"] = [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    return found, unread


def measure(backend: Backend, run_id: str, plan: LaunchPlan, outputs: Mapping[int, Path]) -> LogLoss:
    """Loss over all attempts. ``plan`` names every node that ever took part."""
    total, unread = LogLoss(), set()
    for attempt, path in outputs.items():
        written, missing = read_written(backend, run_id, [plan], attempt)
        one = compare(read_shown(path), written)
        unread |= missing
        total = LogLoss(total.written + one.written, total.lost + one.lost, total.doubled + one.doubled)
    return LogLoss(total.written, total.lost, total.doubled, tuple(sorted(unread)))

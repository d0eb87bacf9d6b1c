"""Whether followed logs are whole: every line the workers wrote shown once, by `ostrain logs -f` beside the drill."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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


class LogFollower:
    """``ostrain logs -f`` of a run, from its first line to its last, into a file."""

    def __init__(self, commands: Commands, run_id: str) -> None:
        self._commands = commands
        self._child = commands.start(["logs", run_id, "-f"], "logs")

    def finish(self) -> dict[str, list[str]]:
        """What was shown, by prefix, once it has come to its end."""
        self._commands.end(self._child, LAST_LINES)
        return read_shown(self._commands.folder / "logs.out")


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


def read_written(backend: Backend, run_id: str, plan: LaunchPlan) -> tuple[dict[str, list[str]], set[str]]:
    """Worker logs of all attempts as they lie on the nodes, by prefix; and the nodes that cannot be read.

    plan: names every node that ever took part.
    """
    found: dict[str, list[str]] = {}
    unread: set[str] = set()
    ref = RunRef(run_id, plan)
    for node, files in backend.files(ref, ("logs/attempt-*/worker_*.log",), timeout=15.0).items():
        if isinstance(files, NodeError):
            if files.kind != "no_run":
                unread.add(node)
            continue
        for path in files:
            rank = path.rpartition("_")[2].partition(".")[0]
            lines = backend.fetch(ref, node, path).decode("utf-8", "surrogateescape").split("\n")
            lines = lines[:-1] if lines[-1] == "" else lines
            found.setdefault(f"{node}/{rank}", []).extend(line.rstrip("\r") for line in lines)
    return found, unread


def measure(backend: Backend, run_id: str, plan: LaunchPlan, shown: Mapping[str, list[str]]) -> LogLoss:
    """What a follow did not show, or showed again, of all attempts."""
    written, unread = read_written(backend, run_id, plan)
    return compare(shown, written, sorted(unread))

"""Log lines of all nodes: whole lines out of followed bytes, with node and rank, filtered, each exactly once."""

from __future__ import annotations

import calendar
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from cluster.backend import Chunk

SOURCES = ("worker", "launcher", "scheduler", "agent", "service")
_PATH = re.compile(r"logs/attempt-(\d+)/(?:worker_(\d+)|(launcher|scheduler|agent|service))\.log$")
# The payload's own lines, and MindSpore's: [WARNING] ME(12:34,MainProcess):2026-01-02-03:04:05.678.901 [file:1] text
_ISO = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?Z")
_MINDSPORE = re.compile(r"\[[A-Z]+\] \S+?\([^)]*\):(\d{4}-\d\d-\d\d-\d\d:\d\d:\d\d)\.(\d{3})")


@dataclass(frozen=True)
class Line:
    """One log line. ``offset`` and ``end``: its bytes in the file ``path`` of the node's run directory."""

    node: str
    path: str
    attempt: int
    source: str
    rank: int | None
    offset: int
    end: int
    text: str

    @property
    def prefix(self) -> str:
        return f"{self.node}/{self.source if self.rank is None else self.rank}"


@dataclass
class _Tail:
    """A file being followed: bytes since the last newline, and the time of the last dated line."""

    start: int
    rest: bytes = b""
    time: float | None = None


class LineAssembler:
    """Turns chunks into whole lines. Chunks of a file must come in order; a gap is an error, a repeat is dropped."""

    def __init__(self) -> None:
        self._tails: dict[tuple[str, str], _Tail] = {}

    def feed(self, chunk: Chunk) -> Iterator[Line]:
        data = chunk.text.encode("utf-8", "surrogateescape")
        key = (chunk.node, chunk.path)
        tail = self._tails.setdefault(key, _Tail(chunk.offset))
        reached = tail.start + len(tail.rest)
        if chunk.offset > reached:
            raise AssertionError(f"{chunk.node}:{chunk.path} jumps from byte {reached} to {chunk.offset}")
        tail.rest += data[reached - chunk.offset :]
        while (cut := tail.rest.find(b"\n")) >= 0:
            yield self._line(key, tail, cut, cut + 1)

    def flush(self) -> Iterator[Line]:
        """What is left without a newline, when no more can come."""
        for key, tail in self._tails.items():
            if tail.rest:
                yield self._line(key, tail, len(tail.rest), len(tail.rest))

    def _line(self, key: tuple[str, str], tail: _Tail, length: int, consumed: int) -> Line:
        node, path = key
        text = tail.rest[:length].decode("utf-8", "surrogateescape").rstrip("\r")
        attempt, source, rank = describe(path)
        line = Line(node, path, attempt, source, rank, tail.start, tail.start + consumed, text)
        tail.start += consumed
        tail.rest = tail.rest[consumed:]
        return line


def describe(path: str) -> tuple[int, str, int | None]:
    """(attempt, source, rank or None) of a log file's path."""
    match = _PATH.search(path)
    if match is None:
        return 0, path, None
    return int(match[1]), match[3] or "worker", int(match[2]) if match[2] else None


def line_time(text: str) -> float | None:
    """Seconds since the epoch that a line tells of itself, or None."""
    if match := _ISO.match(text):
        return calendar.timegm(time.strptime(match[1], "%Y-%m-%dT%H:%M:%S")) + float(match[2] or 0)
    if match := _MINDSPORE.match(text):
        return time.mktime(time.strptime(match[1], "%Y-%m-%d-%H:%M:%S")) + int(match[2]) / 1000
    return None


@dataclass
class LineFilter:
    """Which lines are shown. A line without a time of its own has that of the line before it in the same file."""

    nodes: frozenset[str] = frozenset()
    ranks: frozenset[int] = frozenset()
    sources: frozenset[str] = frozenset({"worker"})
    attempt: int | None = None
    since: float | None = None
    grep: re.Pattern[str] | None = None
    _times: dict[tuple[str, str], float] = field(default_factory=dict)

    def patterns(self) -> tuple[str, ...]:
        """Globs of the files that can hold wanted lines."""
        attempt = "*" if self.attempt is None else str(self.attempt)
        names = [f"worker_{rank}" for rank in sorted(self.ranks)] if self.ranks else ["worker_*"]
        stems = [name for name in names if "worker" in self.sources]
        stems += [source for source in SOURCES[1:] if source in self.sources]
        return tuple(f"logs/attempt-{attempt}/{stem}.log" for stem in stems)

    def key(self) -> str:
        """A name for this selection: followers with equal selections go on where the last one stopped."""
        grep = self.grep.pattern if self.grep else ""
        parts = (sorted(self.nodes), sorted(self.ranks), sorted(self.sources), self.attempt, grep)
        return repr(parts)

    def __call__(self, line: Line) -> bool:
        where = (line.node, line.path)
        told = line_time(line.text)
        if told is not None:
            self._times[where] = told
        if self.since is not None and self._times.get(where, 0.0) < self.since:
            return False
        if self.nodes and line.node not in self.nodes:
            return False
        return self.grep is None or self.grep.search(line.text) is not None


def printable(text: str, *, styled: bool) -> str:
    """A line as it may be shown: on a terminal, control characters cannot take over the screen."""
    shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if not styled:
        return shown
    return "".join(c if c == "\t" or (c >= " " and c != "\x7f") else f"\\x{ord(c):02x}" for c in shown)

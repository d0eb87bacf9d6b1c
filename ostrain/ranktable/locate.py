"""Where the values and keys of a JSON text stand. Only asked when there is something to tell: ``json`` itself is faster
by far but forgets places."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from dataclasses import dataclass, field

from ostrain.spec.problems import Mark, Source

Path = tuple[str | int, ...]
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)
Span = tuple[int, int]


@dataclass
class Places:
    """``values``, ``keys``: path -> (start, end) in the text; ``twice``: keys that had stood in the object before."""

    values: dict[Path, Span] = field(default_factory=dict)
    keys: dict[Path, Span] = field(default_factory=dict)
    twice: list[tuple[Path, Span]] = field(default_factory=list)


@dataclass
class _Frame:
    path: Path
    is_list: bool
    step: str | int = 0
    waits_for_key: bool = False


def places(text: str) -> Places:
    """The places in a text that is known to be JSON. Linear in its length; no recursion."""
    found = Places()
    stack: list[_Frame] = []
    for match in _TOKEN.finditer(text):
        token, span = match[0], match.span()
        frame = stack[-1] if stack else None
        if token == ",":
            _next(frame)
        elif token in "]}":
            stack.pop()
        elif token == ":":
            continue
        elif frame is not None and frame.waits_for_key:
            _key(found, frame, token, span)
        else:
            path = (*frame.path, frame.step) if frame is not None else ()
            found.values[path] = span
            if token in "[{":
                stack.append(_Frame(path, token == "[", waits_for_key=token == "{"))
    return found


def _next(frame: _Frame | None) -> None:
    if frame is None:
        return
    if isinstance(frame.step, int) and frame.is_list:
        frame.step += 1
    else:
        frame.waits_for_key = True


def _key(found: Places, frame: _Frame, token: str, span: Span) -> None:
    frame.step, frame.waits_for_key = json.loads(token) if "\\" in token else token[1:-1], False
    path = (*frame.path, frame.step)
    if path in found.keys:
        found.twice.append((path, span))
    found.keys[path] = span


class Lines:
    """Offsets of a text as marks."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._starts = [0, *(match.end() for match in re.finditer("\n", source.text))]

    def mark(self, start: int, end: int | None = None) -> Mark:
        line = bisect_right(self._starts, start) - 1
        return Mark(self.source, line, start - self._starts[line], max(1, (end or start) - start))

"""Places in files and the problems found there, rendered for people: file:line:column, the line, a caret."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

_WIDTH = 120


@dataclass(frozen=True)
class Source:
    """A text that was read. ``is_override``: the text of one ``--set``, which has no line and column of its own."""

    name: str
    text: str
    is_override: bool = False

    def line(self, number: int) -> str:
        """Line ``number`` (from 0) without its end; empty past the last one."""
        lines = self.text.split("\n")
        return lines[number].rstrip("\r") if 0 <= number < len(lines) else ""


@dataclass(frozen=True)
class Mark:
    """A place: ``line`` and ``column`` count from 0; ``length`` characters are underlined."""

    source: Source
    line: int = 0
    column: int = 0
    length: int = 1

    def __str__(self) -> str:
        return self.source.name if self.source.is_override else f"{self.source.name}:{self.line + 1}:{self.column + 1}"

    @property
    def order(self) -> tuple[bool, str, int, int]:
        return (self.source.is_override, self.source.name, self.line, self.column)


@dataclass(frozen=True)
class Problem:
    """Something wrong at a place."""

    mark: Mark
    message: str

    def render(self) -> str:
        """The message, then the source line with carets under the place."""
        line = self.mark.source.line(self.mark.line)
        head = f"{self.mark}: {self.message}"
        if not line.strip():
            return head
        shown, column = _window(line, self.mark.column)
        length = max(1, min(self.mark.length, len(shown) - column))
        return f"{head}\n    {_printable(shown)}\n    {_blank(shown[:column])}{'^' * _columns(shown[column:][:length])}"


def render_all(problems: Iterable[Problem]) -> list[str]:
    """Rendered problems in the order of the files, every one once."""
    return [problem.render() for problem in sorted(dict.fromkeys(problems), key=lambda p: p.mark.order)]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the nearest known word, or nothing."""
    lowered = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6 if len(word) > 3 else 0.5)
    return f"; did you mean {lowered[near[0]]!r}?" if near else ""


def _window(line: str, column: int) -> tuple[str, int]:
    """At most ``_WIDTH`` characters of a long line around ``column``, and where the column is in them."""
    if len(line) <= _WIDTH:
        return line, min(column, len(line))
    start = max(0, min(column - _WIDTH // 2, len(line) - _WIDTH))
    return line[start : start + _WIDTH], min(column, len(line)) - start


def _cells(letter: str) -> int:
    if unicodedata.combining(letter) or unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in ("W", "F") else 1


def _columns(text: str) -> int:
    return max(1, sum(_cells(letter) for letter in text))


def _blank(text: str) -> str:
    """As wide as ``text`` on a terminal; tabs stay tabs, so that the caret lands where the text does."""
    return "".join("\t" if letter == "\t" else " " * _cells(letter) for letter in _printable(text))


def _printable(text: str) -> str:
    """Control characters would move the cursor or clear the screen: show a box instead."""
    return "".join("□" if letter != "\t" and unicodedata.category(letter) == "Cc" else letter for letter in text)

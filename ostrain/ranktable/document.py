"""A rank table's text: read as HCCL reads it, with the place of every value for those who ask."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path as FilePath
from typing import Any

from ostrain.errors import OstrainError
from ostrain.ranktable.locate import Lines, Path, Places, places
from ostrain.spec.document import DocumentError
from ostrain.spec.problems import Mark, Problem, Source
from ostrain.spec.resources import shown_path
from ostrain.states import ExitCode

# HCCL reads up to 1 GiB; 65536 ranks, its limit, are below 100 MiB.
MAX_BYTES = 256 << 20
_LONG_NUMBER = re.compile(r"\d{4000,}")


class _NotANumber(ValueError):
    """A number that JSON or a double does not have."""


class Document:
    """A table's plain data. ``mark`` and ``key_mark`` say where things stand."""

    def __init__(self, source: Source, data: Any, has_twice: bool = False) -> None:
        self.source = source
        self.data = data
        self.has_twice = has_twice
        self._places: Places | None = None
        self._lines: Lines | None = None

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def places(self) -> Places:
        if self._places is None:
            self._places = places(self.source.text)
        return self._places

    @property
    def lines(self) -> Lines:
        if self._lines is None:
            self._lines = Lines(self.source)
        return self._lines

    def mark(self, path: Path) -> Mark:
        """Where the value at ``path`` stands; of what is nearest above it where there is none."""
        for length in range(len(path), -1, -1):
            if span := self.places.values.get(path[:length]):
                return self.lines.mark(*span)
        return Mark(self.source)

    def key_mark(self, path: Path) -> Mark:
        span = self.places.keys.get(path)
        return self.lines.mark(*span) if span else self.mark(path)


def read(path: str) -> Document:
    """The table in a file, or in standard input (``-``).

    Raises DocumentError (one problem) where the text is no JSON, OstrainError (exit 2) where there is no such file.
    """
    if path == "-":
        return parse(decoded("standard input", sys.stdin.buffer.read(MAX_BYTES + 1)))
    return parse(decoded(shown_path(FilePath(path)), read_bytes(FilePath(path))))


def read_bytes(path: FilePath) -> bytes:
    """A regular file's content; OstrainError (exit 2) where that cannot be had."""
    try:
        if path.is_dir():
            raise _unreadable(path, "it is a folder", "name a file in it")
        if path.exists() and not path.is_file():
            raise _unreadable(path, "it is no regular file", "name a file")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise _unreadable(path, "there is no such file", "check the path") from None
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise _unreadable(path, why, "name a file that can be read") from None


def _unreadable(path: FilePath, why: str, next_step: str) -> OstrainError:
    return OstrainError(f"{path} cannot be read", why=why, next_step=next_step, exit_code=ExitCode.USAGE)


def decoded(name: str, data: bytes) -> Source:
    """A file's text. DocumentError where it is none."""
    if len(data) > MAX_BYTES:
        raise _problem(Source(name, ""), 0, f"is larger than {MAX_BYTES >> 20} MB; no rank table is")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", errors="replace"))
        place = Mark(Source(name, data.decode("utf-8", errors="replace")), before.count(b"\n"), column)
        raise DocumentError([Problem(place, f"byte 0x{data[error.start]:02x} is not UTF-8")]) from None
    return Source(name, text)


def parse(source: Source) -> Document:
    """The data of a JSON text. Raises DocumentError (one problem)."""
    twice = False

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal twice
        result = dict(pairs)
        twice = twice or len(result) != len(pairs)
        return result

    text = source.text
    try:
        data = json.loads(text, object_pairs_hook=mapping, parse_constant=_constant, parse_float=_float)
    except json.JSONDecodeError as error:
        raise _problem(source, error.pos, _syntax(text, error)) from None
    except RecursionError:
        raise _problem(source, 0, "is nested too deeply to be a rank table") from None
    except _NotANumber as error:
        raise _problem(source, max(0, text.find(str(error))), f"{error} is no number JSON has") from None
    except ValueError:  # Python's limit of digits
        match = _LONG_NUMBER.search(text)
        raise _problem(source, match.start() if match else 0, "a number of too many digits") from None
    return Document(source, data, twice)


def _constant(word: str) -> Any:
    raise _NotANumber(word)


def _float(word: str) -> float:
    value = float(word)
    if not math.isfinite(value):
        raise _NotANumber(word)
    return value


def _problem(source: Source, position: int, message: str) -> DocumentError:
    return DocumentError([Problem(Lines(source).mark(position), message)])


def _syntax(text: str, error: json.JSONDecodeError) -> str:
    """What is wrong with a text that is no JSON, in words for people."""
    rest = text[error.pos : error.pos + 2]
    before = text[: error.pos].rstrip()
    if not text.strip():
        return "is empty; a rank table is a JSON object"
    if rest in ("//", "/*") or rest.startswith("#"):
        return "not JSON: it has no comments; delete them (the samples of the HCCL guide show them as explanations)"
    if rest.startswith("'"):
        return "not JSON: strings are in double quotes"
    if before.endswith(",") and rest[:1] in ("}", "]"):
        return "not JSON: a comma before a closing bracket"
    if error.msg == "Extra data":
        return "not JSON: the table ends before this; a file holds one table"
    if error.pos >= len(text.rstrip()):
        return "not JSON: the file ends before the table does (cut off?)"
    return f"not JSON: {error.msg[0].lower()}{error.msg[1:]}"

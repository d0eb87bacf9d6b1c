"""The annotation file: a CSV with a header that names a video column and, where captions count, a caption column."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.exits import BAD_DATA, PayloadError


@dataclass(frozen=True)
class Row:
    """One clip with its caption. ``video`` is the path as written, ``line`` where it stands in the file.

    fps: what a column of that name says, if there is one; counts for cached latents alone.
    """

    video: str
    caption: str
    line: int
    fps: str = ""


@dataclass(frozen=True)
class Table:
    """A CSV with a header: names of its columns, and (line, fields) of its rows, empty lines left out."""

    path: Path
    header: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]

    def column(self, name: str) -> int:
        """Place of a column. PayloadError(BAD_DATA) names those that are there."""
        return _column(self.path, list(self.header), name)


def read_annotations(path: Path, video_column: str, caption_column: str | None) -> list[Row]:
    """Rows of ``path``, with empty captions where ``caption_column`` is None.

    PayloadError(BAD_DATA) names file, line and column of what is wrong.
    """
    names = [name for name in (video_column, caption_column) if name is not None]
    table = read_table(path, names)
    columns = [table.column(name) for name in names]
    rate = table.header.index("fps") if "fps" in table.header else None
    rows = []
    for line, fields in table.rows:
        if len(fields) <= max(columns) or not fields[columns[0]].strip():
            what = "row names no video" if len(fields) > max(columns) else "row has too few columns"
            why = f"{len(fields)} of {len(table.header)} columns"
            raise _bad(path, what, "complete or remove the row", why, line)
        caption = fields[columns[1]] if len(columns) > 1 else ""
        fps = fields[rate].strip() if rate is not None and rate < len(fields) else ""
        rows.append(Row(fields[columns[0]].strip(), caption, line, fps))
    return rows


def read_table(path: Path, expected: Sequence[str]) -> Table:
    """The whole CSV. expected: columns to advise where it is empty. PayloadError(BAD_DATA) as above."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _table(path, file.read(), expected)
    except FileNotFoundError:
        raise _bad(path, "annotation file does not exist", "correct its path, data.annotations") from None
    except UnicodeDecodeError as error:
        raise _bad(path, "annotation file is not UTF-8", "save it as UTF-8", str(error)) from None
    except OSError as error:
        raise _bad(path, "annotation file cannot be read", "check its permissions", error.strerror or "") from None


def _table(path: Path, text: str, expected: Sequence[str]) -> Table:
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    rows = []
    try:
        header = next(reader, None)
        if not header:
            raise _bad(path, "annotation file is empty", f"give it the header {','.join(expected)}")
        table = Table(path, tuple(field.strip() for field in header), ())
        for name in expected:
            table.column(name)
        start = reader.line_num + 1
        for fields in reader:
            line, start = start, reader.line_num + 1
            if fields:
                rows.append((line, tuple(fields)))
    except csv.Error as error:
        raise _bad(path, "annotation file is not valid CSV", "quote its fields", str(error), reader.line_num) from None
    if not rows:
        raise _bad(path, "annotation file holds no clips", "add rows below the header")
    return Table(path, table.header, tuple(rows))


def _column(path: Path, header: list[str], name: str) -> int:
    names = [field.strip() for field in header]
    if name in names:
        return names.index(name)
    close = difflib.get_close_matches(name, names, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise _bad(
        path,
        f"annotation file has no column {name!r}{hint}",
        "correct the header, or name the columns in data.video_column and data.caption_column",
        f"its header is {','.join(names)}",
        1,
    )


def _bad(path: Path, what: str, next_step: str, why: str = "", line: int = 0) -> PayloadError:
    where = f"{path}:{line}" if line else str(path)
    return PayloadError(BAD_DATA, what, where=where, why=why, next_step=next_step)

"""The annotation file: a CSV with a header that names a video column and, where captions count, a caption column."""

from __future__ import annotations

import csv
import difflib
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


def read_annotations(path: Path, video_column: str, caption_column: str | None) -> list[Row]:
    """Rows of ``path``, with empty captions where ``caption_column`` is None.

    PayloadError(BAD_DATA) names file, line and column of what is wrong.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _rows(path, file.read(), video_column, caption_column)
    except FileNotFoundError:
        raise _bad(path, "annotation file does not exist", "write its path in data.annotations") from None
    except UnicodeDecodeError as error:
        raise _bad(path, "annotation file is not UTF-8", "save it as UTF-8", str(error)) from None
    except OSError as error:
        raise _bad(path, "annotation file cannot be read", "check its permissions", error.strerror or "") from None


def _rows(path: Path, text: str, video_column: str, caption_column: str | None) -> list[Row]:
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    rows = []
    try:
        header = next(reader, None)
        if not header:
            names = ",".join(name for name in (video_column, caption_column) if name is not None)
            raise _bad(path, "annotation file is empty", f"give it the header {names}")
        columns = [_column(path, header, name) for name in (video_column, caption_column) if name is not None]
        rate = next((place for place, field in enumerate(header) if field.strip() == "fps"), None)
        start = reader.line_num + 1
        for fields in reader:
            line, start = start, reader.line_num + 1
            if not fields:
                continue
            if len(fields) <= max(columns) or not fields[columns[0]].strip():
                what = "row names no video" if len(fields) > max(columns) else "row has too few columns"
                raise _bad(path, what, "complete or remove the row", f"{len(fields)} of {len(header)} columns", line)
            caption = fields[columns[1]] if len(columns) > 1 else ""
            fps = fields[rate].strip() if rate is not None and rate < len(fields) else ""
            rows.append(Row(fields[columns[0]].strip(), caption, line, fps))
    except csv.Error as error:
        raise _bad(path, "annotation file is not valid CSV", "quote its fields", str(error), reader.line_num) from None
    if not rows:
        raise _bad(path, "annotation file holds no clips", "add rows below the header")
    return rows


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

"""Annotations made of what is there: a folder of clips to a CSV, a CSV without the rows whose files are missing."""

from __future__ import annotations

import csv
import io
import random
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.data.names import find_latents, find_npz
from models.files import write_atomic
from ostrain.errors import OstrainError
from ostrain.states import ExitCode

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".gif")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
WAYS = ("auto", "text", "folder", "name", "none")
_THREADS = 10


@dataclass
class Annotated:
    """(video, caption) of every clip, how many captions came from where, and clips that have none."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    sources: dict[str, int] = field(default_factory=dict)
    without: list[str] = field(default_factory=list)


def annotate(folder: Path, way: str) -> Annotated:
    """Clips and images below a folder, by path, with their captions.

    way: ``text``: from ``<clip>.txt`` beside it; ``folder``: the name of its folder, as in UCF-101 (``ApplyLipstick``
    is "apply lipstick"); ``name``: its own name; ``auto``: the first of text and folder that is there; ``none``: no
    captions. OstrainError: no such folder, or no clip in it.
    """
    if not folder.is_dir():
        raise OstrainError(f"there is no folder {folder}", next_step="name one", exit_code=int(ExitCode.USAGE))
    found = Annotated()
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in VIDEO_SUFFIXES + IMAGE_SUFFIXES or not path.is_file():
            continue
        video = path.relative_to(folder).as_posix()
        caption, source = _caption(path, video, way)
        if not caption and way != "none":
            found.without.append(video)
            continue
        found.rows.append((video, caption))
        found.sources[source] = found.sources.get(source, 0) + 1
    if not found.rows and not found.without:
        suffixes = " ".join(VIDEO_SUFFIXES + IMAGE_SUFFIXES)
        raise OstrainError(f"no clips below {folder}", why=f"files ending in {suffixes} are clips and images")
    return found


def _caption(path: Path, video: str, way: str) -> tuple[str, str]:
    """(caption, where it comes from); an empty caption where there is none."""
    text = path.with_suffix(".txt")
    if way in ("auto", "text") and text.is_file():
        try:
            return " ".join(text.read_text(encoding="utf-8-sig").split()), "text"
        except UnicodeDecodeError as error:
            raise OstrainError(
                "caption is not UTF-8", where=str(text), why=str(error), next_step="save it as UTF-8"
            ) from None
    if way in ("auto", "folder") and "/" in video:
        return words(path.parent.name), "folder"
    return (words(path.stem), "name") if way == "name" else ("", "none")


def words(name: str) -> str:
    """``ApplyEyeMakeup`` and ``apply_eye-makeup`` become "apply eye makeup"."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[_\-.]+", " ", name)
    return " ".join(spaced.lower().split())


def csv_text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> bytes:
    """A CSV as bytes, lines ended by a newline alone."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], force: bool) -> None:
    """Writes a CSV in one step. OstrainError where it exists and is not to be replaced."""
    if path.exists() and not force:
        raise OstrainError(
            f"{path} exists", next_step="name another file, or add --force to replace it", exit_code=ExitCode.USAGE
        )
    write_atomic(path, csv_text(header, rows))


@dataclass(frozen=True)
class Places:
    """Where the files of a clip have to lie; None: nobody asks."""

    videos: Path | None
    text_embeddings: Path | None
    latents: Path | None
    deep: bool = False

    def problem(self, video: str) -> str:
        """What is missing (or, looking deep, damaged) for a clip; empty when nothing is."""
        return next(self._problems(video), "")

    def _problems(self, video: str) -> Iterator[str]:
        if self.videos is not None:
            path = self.videos / video
            if not path.is_file():
                yield "video is missing"
            elif path.stat().st_size == 0:
                yield "video is empty"
            elif self.deep:
                yield from _undecodable(path)
        if self.text_embeddings is not None and find_npz(self.text_embeddings, video) is None:
            yield "text embedding is missing"
        if self.latents is not None and not find_latents(self.latents, video):
            yield "latents are missing"


def _undecodable(path: Path) -> Iterator[str]:
    from models.data.decode import DecodeError, read_header

    try:
        read_header(path)
    except DecodeError as error:
        yield f"video cannot be decoded: {error}"


@dataclass
class Filtered:
    """Rows that stay, as they were, and (line, video, reason) of those that do not."""

    header: tuple[str, ...]
    kept: list[tuple[str, ...]] = field(default_factory=list)
    dropped: list[tuple[int, str, str]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        dropped = [{"line": line, "video": video, "reason": reason} for line, video, reason in self.dropped]
        return {"kept": len(self.kept), "dropped": dropped}


def filter_rows(path: Path, video_column: str, places: Places) -> Filtered:
    """Rows of a CSV whose files are all there. PayloadError: the CSV cannot be read."""
    from models.data.annotations import read_table

    table = read_table(path, [video_column])
    column = table.column(video_column)

    def look(row: tuple[int, tuple[str, ...]]) -> str:
        fields = row[1]
        if len(fields) <= column or not fields[column].strip():
            return "row names no video"
        return places.problem(fields[column].strip())

    result = Filtered(table.header)
    with ThreadPoolExecutor(_THREADS, "filter") as pool:
        for (line, fields), reason in zip(table.rows, pool.map(look, table.rows), strict=True):
            if reason:
                result.dropped.append((line, fields[column] if len(fields) > column else "", reason))
            else:
                result.kept.append(fields)
    return result


def split_rows(rows: Sequence[Any], ratio: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Two parts, each in the order of the rows; the first has ``ratio`` of them (rounded), drawn by ``seed``."""
    chosen = set(random.Random(seed).sample(range(len(rows)), round(ratio * len(rows))))
    first = [row for number, row in enumerate(rows) if number in chosen]
    return first, [row for number, row in enumerate(rows) if number not in chosen]

"""The clips a run trains on: annotations, headers of all clips, their embeddings. Made once, before the first step."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.config import DataConfig
from models.data.annotations import Row, read_annotations
from models.data.decode import DecodeError, Header, read_header
from models.exits import BAD_DATA, PayloadError
from models.files import write_atomic
from models.parallel.world import World
from models.text.embeddings import embedding_problem, find_embedding

INDEX_NAME = "clips.json"
_NAMED = 5


@dataclass(frozen=True)
class Clip:
    """A usable clip: where it is, what it is called in the annotations, what its header says, its embedding if any."""

    name: str
    path: Path
    header: Header
    embedding: Path | None


@dataclass(frozen=True)
class Skipped:
    """A clip that is left out, and why."""

    name: str
    path: Path
    line: int
    reason: str


@dataclass(frozen=True)
class Catalogue:
    """``digest`` names the usable clips and their order in the annotations."""

    clips: tuple[Clip, ...]
    skipped: tuple[Skipped, ...]
    digest: str


def build_catalogue(
    config: DataConfig, run_dir: Path, world: World, channels: int | None, unfit: Callable[[Header], str]
) -> Catalogue:
    """All usable clips. The same on every rank: a clip that one rank cannot use, no rank uses.

    channels: of the text embeddings; None where nobody wants text, nor captions in the annotations.
    unfit: why a clip with this header cannot be cut to any wanted shape; empty when it can.
    Raises PayloadError(BAD_DATA): bad annotations, missing or malformed embeddings (all of them in one message), ranks
    with different annotations, or no usable clip at all.
    """
    for key in ("annotations", "text_embeddings") if channels is not None else ("annotations",):
        if not getattr(config, key):
            raise PayloadError(
                BAD_DATA, f"data.{key} is not set", where="train.yaml", next_step=f"set train.data.{key} to its path"
            )
    annotations = run_dir / config.annotations
    rows = read_annotations(annotations, config.video_column, config.caption_column if channels is not None else None)
    videos = run_dir / config.videos
    paths = [videos / row.video for row in rows]
    if world.leader:
        headers = _probe(paths, run_dir / INDEX_NAME, config.workers)
        world.barrier()
    else:
        # The leader of this node has read the headers; on a node without one everybody reads for himself.
        world.barrier()
        headers = _probe(paths, run_dir / INDEX_NAME, config.workers)
    reasons = [header if isinstance(header, str) else unfit(header) for header in headers]
    reasons = _agree(world, rows, headers, reasons)
    embeddings: dict[int, Path] = {}
    if channels is not None:
        folder = run_dir / config.text_embeddings
        embeddings = _embeddings(rows, reasons, annotations, folder, channels, config.workers)
    clips, skipped = [], []
    for row, path, header, reason in zip(rows, paths, headers, reasons, strict=True):
        if reason or isinstance(header, str):
            skipped.append(Skipped(row.video, path, row.line, reason))
        else:
            clips.append(Clip(row.video, path, header, embeddings.get(row.line)))
    if not clips:
        raise _no_clips(annotations, skipped)
    digest = hashlib.sha256(json.dumps([[clip.name, *_facts(clip.header)] for clip in clips]).encode()).hexdigest()
    return Catalogue(tuple(clips), tuple(skipped), digest)


def _probe(paths: Sequence[Path], index_path: Path, workers: int) -> list[Header | str]:
    """Header of every clip, or why it cannot be read. Read headers are remembered in ``index_path``."""
    known = _read_index(index_path)
    index: dict[str, list[float]] = {}

    def probe(path: Path) -> Header | str:
        try:
            stat = path.stat()
        except OSError as error:
            return error.strerror or str(error)
        key = str(path)
        entry = known.get(key)
        if entry is None or entry[:2] != [stat.st_size, stat.st_mtime_ns]:
            try:
                entry = [stat.st_size, stat.st_mtime_ns, *_facts(read_header(path))]
            except DecodeError as error:
                return str(error)
        index[key] = entry
        return Header(int(entry[2]), int(entry[3]), int(entry[4]), float(entry[5]))

    with ThreadPoolExecutor(max(1, workers), "probe") as pool:
        headers = list(pool.map(probe, paths))
    if index != known:
        write_atomic(index_path, json.dumps({key: index[key] for key in sorted(index)}, indent=0).encode())
    return headers


def _read_index(path: Path) -> dict[str, list[float]]:
    try:
        index = json.loads(path.read_text())
    except (OSError, ValueError):
        # No index yet, or one cut short: read the headers again.
        return {}
    return index if isinstance(index, dict) else {}


def _facts(header: Header) -> tuple[int, int, int, float]:
    return (header.frames, header.height, header.width, header.fps)


def _agree(world: World, rows: Sequence[Row], headers: Sequence[Header | str], reasons: list[str]) -> list[str]:
    """The reasons all ranks agree on. PayloadError when their annotations differ."""
    if world.size == 1:
        return reasons
    digest = hashlib.sha256(json.dumps([[row.video, row.caption] for row in rows]).encode()).digest()
    if world.broadcast_bytes(digest) != digest:
        raise PayloadError(
            BAD_DATA,
            "annotations differ between nodes",
            where=f"rank {world.rank} against rank 0",
            next_step="put the same annotation file on every node",
        )
    table = np.zeros((len(rows), 4))
    for number, header in enumerate(headers):
        if not isinstance(header, str):
            table[number] = _facts(header)
    first = np.frombuffer(world.broadcast_bytes(table.tobytes())).reshape(table.shape)
    same = (first == table).all(axis=1)
    usable = np.array([not reason for reason in reasons]) & same
    agreed = world.sum(usable.astype(np.float32)) == world.size
    found = []
    for number, reason in enumerate(reasons):
        if agreed[number]:
            found.append("")
        elif reason:
            found.append(reason)
        else:
            found.append("is not the same file on all nodes" if not same[number] else "cannot be used on another rank")
    return found


def _embeddings(
    rows: Sequence[Row], reasons: Sequence[str], annotations: Path, folder: Path, channels: int, workers: int
) -> dict[int, Path]:
    """Embedding file of every usable clip, by line of the annotations. All problems in one PayloadError."""
    if not folder.is_dir():
        raise PayloadError(
            BAD_DATA,
            "folder of text embeddings does not exist",
            where=str(folder),
            next_step="compute them, or correct data.text_embeddings",
        )

    def check(row: Row) -> tuple[Row, Path | None, str]:
        path = find_embedding(folder, row.video)
        return row, path, "is missing" if path is None else embedding_problem(path, channels)

    with ThreadPoolExecutor(max(1, workers), "embeddings") as pool:
        checked = list(pool.map(check, [row for row, reason in zip(rows, reasons, strict=True) if not reason]))
    missing = [row for row, path, _ in checked if path is None]
    if missing:
        first = ", ".join(f"{row.video} (line {row.line})" for row in missing[:_NAMED])
        raise PayloadError(
            BAD_DATA,
            f"text embeddings are missing for {len(missing)} of {len(checked)} clips",
            where=f"{folder}, for {annotations}:{missing[0].line}",
            why=first + (", …" if len(missing) > _NAMED else ""),
            next_step="compute them (<video>.npz), or remove the rows",
        )
    wrong = [(path, problem) for _, path, problem in checked if problem]
    if wrong:
        raise PayloadError(
            BAD_DATA,
            f"text embeddings of {len(wrong)} of {len(checked)} clips cannot be used",
            where=str(wrong[0][0]),
            why=wrong[0][1],
            next_step="compute them again, or correct model.caption_channels",
        )
    return {row.line: path for row, path, _ in checked if path is not None}


def _no_clips(annotations: Path, skipped: Sequence[Skipped]) -> PayloadError:
    named = "; ".join(f"{os.fspath(clip.path)}: {clip.reason}" for clip in skipped[:_NAMED])
    return PayloadError(
        BAD_DATA,
        f"none of the {len(skipped)} clips can be used",
        where=f"{annotations}:{skipped[0].line}",
        why=named + ("; …" if len(skipped) > _NAMED else ""),
        next_step="correct data.videos, or the paths in the annotations",
    )

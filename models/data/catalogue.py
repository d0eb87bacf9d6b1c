"""The clips a run trains on: annotations, headers of all clips, their embeddings. Made once, before the first step."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from models.config import DataConfig
from models.data.annotations import Row, read_annotations
from models.data.decode import DecodeError, Header, read_header
from models.data.latents import LatentFile, read_latent_header, read_settings
from models.data.names import find_npz, latent_folders
from models.exits import BAD_DATA, PayloadError
from models.files import write_atomic
from models.parallel.world import World
from models.text.embeddings import embedding_problem

INDEX_NAME = "clips.json"
_NAMED = 5


@dataclass(frozen=True)
class Clip:
    """A usable clip: where it is, what it is called in the annotations, what its header says, its embedding if any.

    caption: for embedding it during training. latents: its files where latents are cached; path and header are then
    those of the first, and fps counts what was taken of the video.
    """

    name: str
    path: Path
    header: Header
    embedding: Path | None
    caption: str = ""
    latents: tuple[LatentFile, ...] = ()


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
    config: DataConfig,
    run_dir: Path,
    world: World,
    channels: int | None,
    unfit: Callable[[Header], str],
    *,
    online: bool = False,
    index: str = INDEX_NAME,
) -> Catalogue:
    """All usable clips. The same on every rank: a clip that one rank cannot use, no rank uses.

    channels: of the text embeddings; None where nobody wants text, nor captions in the annotations.
    unfit: why a clip with this header cannot be cut to any wanted shape; empty when it can. With cached latents it is
    asked for every file of them, with its size in latents.
    online: captions are embedded during training, unless ``text_embeddings`` says where they lie embedded.
    index: file in the run directory that remembers what was read of the clips.
    Raises PayloadError(BAD_DATA): bad annotations, missing or malformed embeddings (all of them in one message), ranks
    with different annotations, or no usable clip at all.
    """
    from_files = channels is not None and not (online and not config.text_embeddings)
    for key in ("annotations", "text_embeddings") if from_files else ("annotations",):
        if not getattr(config, key):
            raise PayloadError(
                BAD_DATA, f"data.{key} is not set", where="train.yaml", next_step=f"set train.data.{key} to its path"
            )
    annotations = run_dir / config.annotations
    rows = read_annotations(annotations, config.video_column, config.caption_column if channels is not None else None)
    source = _source(config, run_dir)
    candidates = [_Candidate(row, path) for row in rows for path in source.paths(row)]
    paths = [candidate.path for candidate in candidates]
    if not world.leader:
        # The leader of this node reads the headers first; on a node without one everybody reads for himself.
        world.barrier()
    headers = probe(paths, run_dir / index, config.workers, source.read)
    if world.leader:
        world.barrier()
    reasons = [header if isinstance(header, str) else unfit(header) for header in headers]
    reasons = _agree(world, candidates, headers, reasons)
    clips, skipped = source.clips(candidates, headers, reasons)
    if clips and channels is not None and from_files:
        folder = run_dir / config.text_embeddings
        named = [row for row, _ in clips]
        embeddings = _embeddings(named, annotations, folder, channels, config.workers)
        clips = [(row, replace(clip, embedding=embeddings[row.line])) for row, clip in clips]
    if not clips:
        raise _no_clips(annotations, skipped)
    usable = tuple(clip for _, clip in clips)
    digest = hashlib.sha256(json.dumps([_identity(clip) for clip in usable]).encode()).hexdigest()
    return Catalogue(usable, tuple(skipped), digest)


def headers_of(
    config: DataConfig,
    base: Path,
    annotations: Path,
    index_path: Path | None,
    unfit: Callable[[Header], str],
    progress: Callable[[int], None],
) -> tuple[list[Clip], list[Skipped]]:
    """The usable clips of one machine and the others, whatever text they have; for looking at a data set.

    Paths of ``config`` start at ``base``; headers are remembered in ``index_path``; progress hears of every one read.
    PayloadError(BAD_DATA): bad annotations, or no usable clip at all.
    """
    rows = read_annotations(annotations, config.video_column, None)
    source = _source(config, base)
    candidates = [_Candidate(row, path) for row in rows for path in source.paths(row)]

    def read(path: Path) -> Header:
        progress(1)
        return source.read(path)

    headers = probe([candidate.path for candidate in candidates], index_path, config.workers, read)
    reasons = [header if isinstance(header, str) else unfit(header) for header in headers]
    clips, skipped = source.clips(candidates, headers, reasons)
    if not clips:
        raise _no_clips(annotations, skipped)
    return [clip for _, clip in clips], skipped


@dataclass(frozen=True)
class _Candidate:
    """A file that may serve for a row of the annotations."""

    row: Row
    path: Path


Headers = Sequence[Header | str]
Found = tuple[list[tuple[Row, Clip]], list[Skipped]]


class _Videos:
    """Clips are videos, one file each."""

    def __init__(self, config: DataConfig, run_dir: Path) -> None:
        self._folder = run_dir / config.videos
        self.read = read_header

    def paths(self, row: Row) -> list[Path]:
        return [self._folder / row.video]

    def clips(self, candidates: Sequence[_Candidate], headers: Headers, reasons: Sequence[str]) -> Found:
        clips, skipped = [], []
        for candidate, header, reason in zip(candidates, headers, reasons, strict=True):
            row, path = candidate.row, candidate.path
            if reason or isinstance(header, str):
                skipped.append(Skipped(row.video, path, row.line, reason))
            else:
                clips.append((row, Clip(row.video, path, header, None, row.caption)))
        return clips, skipped


class _Latents:
    """Clips are files of cached latents, one in each folder of a resolution. PayloadError: no such folder."""

    def __init__(self, config: DataConfig, run_dir: Path) -> None:
        folder = run_dir / config.latents
        if not folder.is_dir():
            raise PayloadError(
                BAD_DATA,
                "folder of cached latents does not exist",
                where=str(folder),
                next_step="make it with `ostrain data cache-latents`, or correct data.latents",
            )
        self._folders = latent_folders(folder)
        self._stride = int(read_settings(folder).get("frame_stride", 1))
        self.read = read_latent_header

    def paths(self, row: Row) -> list[Path]:
        usual = Path(row.video.lstrip("/")).with_suffix(".npz")
        return [find_npz(folder, row.video) or folder / usual for folder in self._folders]

    def clips(self, candidates: Sequence[_Candidate], headers: Headers, reasons: Sequence[str]) -> Found:
        clips, skipped = [], []
        for start in range(0, len(candidates), len(self._folders)):
            part = slice(start, start + len(self._folders))
            row = candidates[start].row
            files = [
                LatentFile(candidate.path, header)
                for candidate, header, reason in zip(candidates[part], headers[part], reasons[part], strict=True)
                if not reason and isinstance(header, Header)
            ]
            fps = self._fps(row, files)
            if not files or fps <= 0:
                reason = "says no fps; give the annotations a column fps" if files else reasons[start]
                skipped.append(Skipped(row.video, candidates[start].path, row.line, reason))
                continue
            header = replace(files[0].size, fps=fps)
            clips.append((row, Clip(row.video, files[0].path, header, None, row.caption, tuple(files))))
        return clips, skipped

    def _fps(self, row: Row, files: Sequence[LatentFile]) -> float:
        """Frames a second of what was encoded: a column of the annotations tells, else the file."""
        try:
            told = float(row.fps) if row.fps else 0.0
        except ValueError:
            told = 0.0  # as good as not told: the file is asked
        found = told if told > 0 else next((file.size.fps for file in files if file.size.fps > 0), 0.0)
        return found / self._stride


def _source(config: DataConfig, base: Path) -> _Videos | _Latents:
    return _Latents(config, base) if config.latents else _Videos(config, base)


def _identity(clip: Clip) -> list[object]:
    """What the digest is made of."""
    return [clip.name, *_facts(clip.header), *([*_facts(file.size)] for file in clip.latents)]


def probe(
    paths: Sequence[Path], index_path: Path | None, workers: int, read: Callable[[Path], Header]
) -> list[Header | str]:
    """Header of every file, or why it cannot be read. Read headers are remembered in ``index_path``, if it is given."""
    known = _read_index(index_path) if index_path is not None else {}
    index: dict[str, list[float]] = {}

    def one(path: Path) -> Header | str:
        try:
            stat = path.stat()
        except OSError as error:
            return error.strerror or str(error)
        key = str(path)
        entry = known.get(key)
        if entry is None or entry[:2] != [stat.st_size, stat.st_mtime_ns]:
            try:
                entry = [stat.st_size, stat.st_mtime_ns, *_facts(read(path))]
            except DecodeError as error:
                return str(error)
        index[key] = entry
        return Header(int(entry[2]), int(entry[3]), int(entry[4]), float(entry[5]))

    with ThreadPoolExecutor(max(1, workers), "probe") as pool:
        headers = list(pool.map(one, paths))
    if index_path is not None and index != known:
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


def _agree(world: World, candidates: Sequence[_Candidate], headers: Headers, reasons: list[str]) -> list[str]:
    """The reasons all ranks agree on. PayloadError when their annotations differ."""
    if world.size == 1:
        return reasons
    digest = hashlib.sha256(json.dumps([[one.row.video, one.row.caption] for one in candidates]).encode()).digest()
    if world.broadcast_bytes(digest) != digest:
        raise PayloadError(
            BAD_DATA,
            "annotations differ between nodes",
            where=f"rank {world.rank} against rank 0",
            next_step="put the same annotation file on every node",
        )
    table = np.zeros((len(candidates), 4))
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


def _embeddings(rows: Sequence[Row], annotations: Path, folder: Path, channels: int, workers: int) -> dict[int, Path]:
    """Embedding file of every row, by line of the annotations. All problems in one PayloadError."""
    if not folder.is_dir():
        raise PayloadError(
            BAD_DATA,
            "folder of text embeddings does not exist",
            where=str(folder),
            next_step="compute them, or correct data.text_embeddings",
        )

    def check(row: Row) -> tuple[Row, Path | None, str]:
        path = find_npz(folder, row.video)
        return row, path, "is missing" if path is None else embedding_problem(path, channels)

    with ThreadPoolExecutor(max(1, workers), "embeddings") as pool:
        checked = list(pool.map(check, rows))
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

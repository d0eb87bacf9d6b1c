"""Reading ranges of tensors out of shards: just those bytes, whatever layout wrote them."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from types import TracebackType

import numpy as np

from models.checkpoint import folder
from models.checkpoint.manifest import Manifest
from models.exits import BAD_CHECKPOINT, PayloadError


class Index:
    """Where each value of each tensor is: by key, (start, stop, shard number, values before it in the shard)."""

    def __init__(self, manifest: Manifest) -> None:
        self._ranges: dict[str, list[tuple[int, int, int, int]]] = {}
        for number, shard in enumerate(manifest.shards):
            offset = 0
            for key, start, stop in shard.pieces:
                self._ranges.setdefault(key, []).append((start, stop, number, offset))
                offset += stop - start
        for ranges in self._ranges.values():
            ranges.sort()

    def parts(self, key: str, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """The pieces of [start, stop): (start, stop, shard number, values before it in the shard)."""
        ranges = self._ranges.get(key, [])
        at = max(bisect_right(ranges, (start, math.inf)) - 1, 0)
        while start < stop:
            if at >= len(ranges) or not ranges[at][0] <= start < ranges[at][1]:
                raise PayloadError(
                    BAD_CHECKPOINT,
                    f"the checkpoint does not hold {key} from value {start}",
                    next_step="name another checkpoint",
                )
            first, last, number, offset = ranges[at]
            end = min(stop, last)
            yield start, end, number, offset + start - first
            start, at = end, at + 1


class Reader:
    """Open shards of one checkpoint. ``paths``: by shard number, for those that are at hand."""

    def __init__(self, manifest: Manifest, paths: Mapping[int, Path]) -> None:
        self.manifest = manifest
        self._paths = paths
        self._index = Index(manifest)
        self._files: dict[int, tuple[FileIO, int]] = {}

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for file, _ in self._files.values():
            file.close()
        self._files.clear()

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        """float32 [stop - start] of the tensor ``kind/name``. PayloadError(BAD_CHECKPOINT) if it is not there."""
        values = np.empty(stop - start, np.float32)
        for first, last, number, offset in self._index.parts(key, start, stop):
            file, base = self._open(number)
            part = values[first - start : last - start]
            try:
                file.seek(base + 4 * offset)
                whole = _fill(file, part.view(np.uint8).data)
            except OSError as error:
                raise self._unreadable(number, error.strerror or str(error)) from None
            if not whole:
                raise self._unreadable(number, "it is cut short")
        return values

    def _open(self, number: int) -> tuple[FileIO, int]:
        """A shard, and where its data starts."""
        if number not in self._files:
            path = self._paths.get(number)
            if path is None:
                raise self._unreadable(number, "it is not on this node")
            try:
                file = FileIO(path)
                length = int.from_bytes(file.read(8), "little")
            except OSError as error:
                raise self._unreadable(number, error.strerror or str(error)) from None
            shard = self.manifest.shards[number]
            values = sum(stop - start for _, start, stop in shard.pieces)
            if 8 + length + 4 * values != shard.size:
                file.close()
                raise self._unreadable(number, "its header does not fit its manifest")
            self._files[number] = (file, 8 + length)
        return self._files[number]

    def _unreadable(self, number: int, why: str) -> PayloadError:
        where = self._paths.get(number) or self.manifest.shards[number].file
        return PayloadError(
            BAD_CHECKPOINT, "a shard of the checkpoint cannot be read", where=str(where), why=why,
            next_step="bring the file back, or name another checkpoint",
        )  # fmt: skip


def _fill(file: FileIO, target: memoryview) -> bool:
    """Reads until ``target`` is full (one read gives 2 GB at most); False where the file ends before."""
    while len(target):
        count = file.readinto(target)
        if not count:
            return False
        target = target[count:]
    return True


def whole_manifest(path: Path) -> Manifest:
    """The manifest of the checkpoint ``step-N`` at ``path``, whose shards are all there, and whole. PayloadError."""
    match = re.fullmatch(r"step-(\d+)", path.name)
    step = int(match[1]) if match else -1
    manifest, problem = folder.read_manifest(path, step)
    problems = [problem] if manifest is None else []
    if manifest is not None:
        files = [(shard.file, shard.size, shard.sha256) for shard in manifest.shards]
        problems = [wrong for file in files if (wrong := folder.content_problem(path / file[0], *file[1:]))]
    if manifest is None or problems:
        raise PayloadError(
            BAD_CHECKPOINT,
            "weights cannot be read from this checkpoint",
            where=str(path),
            why="; ".join(problems[:10]),
            next_step="bring its shards together in one file with: ostrain ckpt export",
        )
    return manifest


def read_tensors_of(path: Path, manifest: Manifest, keys: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Whole tensors of a checkpoint by name; keys: name -> ``kind/name``."""
    with Reader(manifest, {number: path / shard.file for number, shard in enumerate(manifest.shards)}) as reader:
        shapes = {name: manifest.tensors[key] for name, key in keys.items()}
        return {name: reader.read(keys[name], 0, math.prod(shape)).reshape(shape) for name, shape in shapes.items()}


def model_of(path: Path) -> dict[str, np.ndarray]:
    """All parameters of the checkpoint ``step-N`` at ``path``, by name; its shards must all be there, and whole."""
    manifest = whole_manifest(path)
    keys = {key.partition("/")[2]: key for key in manifest.tensors if key.startswith("model/")}
    return read_tensors_of(path, manifest, keys)

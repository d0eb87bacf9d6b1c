"""A rank's pieces copied to host memory, laid out as the data of a safetensors file, and written from there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from models.checkpoint.manifest import Range
from models.checkpoint.pieces import Piece

_CHUNK = 8 << 20
# Dirty pages are handed to the disk in portions: one large sync at the end would hold up everybody else's writes.
_PORTION = 64 << 20


def tensor_name(key: str, start: int) -> str:
    """The name of a piece in its shard."""
    return f"{key}@{start}"


class Snapshot:
    """One buffer, used again for every checkpoint while the sizes stay the same."""

    def __init__(self) -> None:
        self._data = np.empty(0, np.float32)
        self._header = b""
        self.pieces: tuple[Range, ...] = ()
        self.shapes: dict[str, tuple[int, ...]] = {}

    def take(self, pieces: Sequence[Piece], metadata: dict[str, str]) -> None:
        """Copies all values. ValueError if a piece does not give what it announces."""
        wanted = [piece for piece in pieces if piece.stop > piece.start]
        total = sum(piece.stop - piece.start for piece in wanted)
        if self._data.size != total:
            self._data = np.empty(total, np.float32)
        offset = 0
        for piece in wanted:
            values = np.asarray(piece.values())
            size = piece.stop - piece.start
            if values.size != size or values.dtype != np.float32:
                raise ValueError(f"{piece.key} gives {values.dtype} [{values.size}], announced as float32 [{size}]")
            np.copyto(self._data[offset : offset + size], values.reshape(-1))
            offset += size
        self.pieces = tuple((piece.key, piece.start, piece.stop) for piece in wanted)
        # Empty tensors have no data, but they have a name and a shape.
        self.shapes = {piece.key: tuple(piece.shape) for piece in pieces}
        self._header = shard_header(self.pieces, metadata)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self._header) + self._data.nbytes

    def write(self, path: Path) -> str:
        """Writes and syncs the file; its SHA-256. Errors are OSError."""
        return write_chunks(path, self.chunks())

    def chunks(self, size: int = _CHUNK) -> Iterator[memoryview]:
        """The bytes of the file in order; every chunk but the header and the last one has ``size`` bytes."""
        yield memoryview(self._header)
        data = self._data.view(np.uint8).data
        for start in range(0, len(data), size):
            yield data[start : start + size]


def shard_header(pieces: Sequence[Range], metadata: dict[str, str]) -> bytes:
    """Length and JSON header of a safetensors file that holds ``pieces`` one after the other as float32."""
    header: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for key, start, stop in pieces:
        end = offset + 4 * (stop - start)
        header[tensor_name(key, start)] = {"dtype": "F32", "shape": [stop - start], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_chunks(path: Path, chunks: Iterator[memoryview] | Iterator[bytes]) -> str:
    """Writes and syncs a file chunk by chunk; its SHA-256."""
    digest = hashlib.sha256()
    unsynced = 0
    with path.open("wb", buffering=0) as file:
        for chunk in chunks:
            rest = memoryview(chunk)
            while len(rest):
                rest = rest[file.write(rest) :]
            digest.update(chunk)
            unsynced += len(chunk)
            if unsynced >= _PORTION:
                os.fdatasync(file.fileno())
                unsynced = 0
        os.fsync(file.fileno())
    return digest.hexdigest()

"""Checkpoints into other files: one safetensors file with PyTorch names, or the same content in other shards.

Everything streams range by range: memory stays at a few tens of megabytes whatever the size of the model.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from models.checkpoint import folder as folders
from models.checkpoint.manifest import MANIFEST, STATE, Manifest, Range, Shard, shard_name
from models.checkpoint.read import Reader
from models.checkpoint.snapshot import shard_header, write_chunks
from models.exits import BAD_CHECKPOINT, PayloadError
from models.files import sync_directory

# Values read at once.
_RANGE = 4 << 20
DTYPES = {"fp32": ("F32", 4), "fp16": ("F16", 2), "bf16": ("BF16", 2)}

Progress = Callable[[int], None]


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 -> the upper 16 bits, rounded to nearest even as PyTorch does; NaN stays NaN. uint16."""
    bits = values.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    rounded[np.isnan(values)] = 0x7FC0
    return rounded


def to_dtype(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bf16":
        return to_bfloat16(values)
    if dtype == "fp16":
        # Beyond 65504 it becomes infinite; the caller counts that.
        with np.errstate(over="ignore"):
            return values.astype(np.float16)
    return values


def export_keys(manifest: Manifest, *, ema: bool) -> dict[str, str]:
    """PyTorch name -> ``kind/name``: the model, or its averages with frozen weights as they are."""
    keys = {key.partition("/")[2]: key for key in manifest.tensors if key.startswith("model/")}
    averages = {key.partition("/")[2]: key for key in manifest.tensors if key.startswith("ema/")}
    if ema and not averages:
        raise PayloadError(
            BAD_CHECKPOINT, "the checkpoint holds no moving averages", why="it was trained with ema_decay off",
            next_step="export the model itself: leave --ema out",
        )  # fmt: skip
    return dict(sorted((keys | averages if ema else keys).items()))


def export(reader: Reader, out: Path, *, ema: bool, dtype: str, progress: Progress = lambda size: None) -> list[str]:
    """Writes one safetensors file, whole or not at all; names of tensors in which values became infinite (fp16)."""
    manifest = reader.manifest
    keys = export_keys(manifest, ema=ema)
    code, width = DTYPES[dtype]
    metadata = {"format": "pt", "step": str(manifest.step), "weights": "ema" if ema else "model"}
    shapes = {name: manifest.tensors[key] for name, key in keys.items()}
    entries = {name: (code, tuple(shape), width * math.prod(shape)) for name, shape in shapes.items()}
    overflown: dict[str, None] = {}

    def chunks() -> Iterator[bytes]:
        yield safetensors_header(entries, metadata)
        for name, key in keys.items():
            for values in _ranges(reader, key, 0, math.prod(manifest.tensors[key]), progress):
                converted = to_dtype(values, dtype)
                if dtype == "fp16" and np.isinf(converted).sum() > np.isinf(values).sum():
                    overflown[name] = None
                yield converted.tobytes()

    write_whole(out, chunks())
    return list(overflown)


def safetensors_header(entries: Mapping[str, tuple[str, tuple[int, ...], int]], metadata: dict[str, str]) -> bytes:
    """Length and JSON header of a safetensors file with tensors in this order: (dtype, shape, bytes) by name."""
    header: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for name, (code, shape, size) in entries.items():
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_whole(out: Path, chunks: Iterator[bytes]) -> None:
    """Writes a file, whole or not at all."""
    temporary = out.with_name(f".{out.name}.part")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_chunks(temporary, chunks)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(out.parent)


def reshard(
    reader: Reader, state: bytes, out: Path, world: int, node: str, progress: Progress = lambda size: None
) -> Path:
    """Writes ``out/step-N`` with the same tensors and facts in ``world`` shards of about equal size."""
    old = reader.manifest
    temporary = folders.writing_path(out, old.step)
    temporary.mkdir(parents=True)
    shards = []
    for rank in range(world):
        pieces = _share(old, rank, world)
        header = shard_header(pieces, {"format": "ostrain", "step": str(old.step), "shard": shard_name(rank, world)})
        path = temporary / shard_name(rank, world)
        sha256 = write_chunks(path, _shard_chunks(header, reader, pieces, progress))
        shards.append(Shard(path.name, path.stat().st_size, sha256, (node,), pieces))
    manifest = Manifest(
        step=old.step, world=world, time=old.time, state_size=len(state),
        state_sha256=hashlib.sha256(state).hexdigest(), tensors=old.tensors, shards=tuple(shards),
    )  # fmt: skip
    folders.write_synced(temporary / STATE, state)
    folders.write_synced(temporary / MANIFEST, manifest.encode())
    sync_directory(temporary)
    return folders.publish(out, old.step)


def _share(manifest: Manifest, rank: int, world: int) -> tuple[Range, ...]:
    """1/world of every tensor, in the order of names."""
    pieces = []
    for key, shape in sorted(manifest.tensors.items()):
        size = math.prod(shape)
        start, stop = size * rank // world, size * (rank + 1) // world
        if stop > start:
            pieces.append((key, start, stop))
    return tuple(pieces)


def _shard_chunks(header: bytes, reader: Reader, pieces: Sequence[Range], progress: Progress) -> Iterator[bytes]:
    yield header
    for key, start, stop in pieces:
        for values in _ranges(reader, key, start, stop, progress):
            yield values.tobytes()


def _ranges(reader: Reader, key: str, start: int, stop: int, progress: Progress) -> Iterator[np.ndarray]:
    for first in range(start, stop, _RANGE):
        values = reader.read(key, first, min(first + _RANGE, stop))
        progress(values.nbytes)
        yield values

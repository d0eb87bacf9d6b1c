"""Reading and writing safetensors one tensor at a time.

The safetensors package holds a whole file in memory, reports a full disk as text and knows no bfloat16 with numpy.
Here tensors stream to the file (hashed on the way) and from it, and a full disk is an OSError with its number. The
format is the package's own: 8 bytes of header length, a JSON header, the data.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

_WRITTEN = {"float32": "F32", "float16": "F16", "int32": "I32", "int64": "I64", "uint8": "U8", "bool": "BOOL"}
_READ = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_MAX_HEADER = 100 << 20

# A tensor to be written: its shape and dtype, and how to get its values when their turn comes.
Source = tuple[tuple[int, ...], np.dtype, Callable[[], np.ndarray]]


class BadTensors(Exception):
    """A file that is not a whole safetensors file; the text says why."""


def source(array: np.ndarray) -> Source:
    return tuple(array.shape), array.dtype, lambda: array


def write_tensors(path: Path, tensors: dict[str, Source]) -> tuple[int, str]:
    """Writes and syncs ``path``; (size, SHA-256). OSError where the file system refuses."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in sorted(tensors):
        shape, dtype, _ = tensors[name]
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        header[name] = {"dtype": _WRITTEN[dtype.name], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in _parts(text, tensors):
            file.write(part)
            digest.update(part)
        file.flush()
        os.fsync(file.fileno())
    return 8 + len(text) + offset, digest.hexdigest()


def _parts(header: bytes, tensors: dict[str, Source]) -> Iterator[bytes | memoryview]:
    yield len(header).to_bytes(8, "little") + header
    for name in sorted(tensors):
        shape, dtype, values = tensors[name]
        array = np.asarray(values(), order="C")
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, announced as {dtype} {shape}")
        yield array.reshape(-1).view(np.uint8).data


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Name -> {dtype, shape, data_offsets (from the start of the file)}. BadTensors, OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise BadTensors("is not a safetensors file, or is cut short")
        try:
            header = json.loads(file.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            for name, entry in entries.items():
                _check(name, entry, size - 8 - length)
                entry["data_offsets"] = [offset + 8 + length for offset in entry["data_offsets"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadTensors(f"has a damaged header ({error})") from None
    return entries


def _check(name: str, entry: dict[str, Any], data_size: int) -> None:
    start, end = entry["data_offsets"]
    if entry["dtype"] not in _READ:
        raise BadTensors(f"holds {name} as {entry['dtype']}, which is not supported")
    size = int(np.prod(entry["shape"], dtype=np.int64)) * np.dtype(_READ[entry["dtype"]]).itemsize
    if not 0 <= start <= end or end - start != size:
        raise BadTensors(f"has a damaged header (offsets of {name})")
    if end > data_size:
        raise BadTensors("is cut short")


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a file; bfloat16 becomes float32. BadTensors, OSError."""
    tensors = {}
    entries = read_header(path)
    with path.open("rb") as file:
        for name in sorted(entries, key=lambda key: entries[key]["data_offsets"][0]):
            entry = entries[name]
            start, end = entry["data_offsets"]
            array = np.empty(entry["shape"], _READ[entry["dtype"]])
            file.seek(start)
            if file.readinto(memoryview(array.reshape(-1).view(np.uint8))) != end - start:
                raise BadTensors("is cut short")
            if entry["dtype"] == "BF16":
                array = (array.astype(np.uint32) << 16).view(np.float32)
            tensors[name] = array
    return tensors


def read_range(path: Path, entry: dict[str, Any], start: int, stop: int) -> np.ndarray:
    """Values [start, stop) of one flat tensor, by its entry of :func:`read_header`; bfloat16 becomes float32."""
    array = np.empty(stop - start, _READ[entry["dtype"]])
    with path.open("rb") as file:
        file.seek(entry["data_offsets"][0] + start * array.itemsize)
        if file.readinto(memoryview(array.view(np.uint8))) != array.nbytes:
            raise BadTensors("is cut short")
    return (array.astype(np.uint32) << 16).view(np.float32) if entry["dtype"] == "BF16" else array

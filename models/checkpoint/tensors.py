"""Reading safetensors one tensor at a time, or a part of one.

The safetensors package reports damage as text of its own and knows no bfloat16 with numpy. The format: 8 bytes of
header length, a JSON header, the data.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

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


class BadTensors(Exception):
    """A file that is not a whole safetensors file; the text says why."""


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
    for name in sorted(entries, key=lambda key: entries[key]["data_offsets"][0]):
        array = read_raw(path, entries[name])
        if entries[name]["dtype"] == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = array
    return tensors


def read_raw(path: Path, entry: dict[str, Any]) -> np.ndarray:
    """One tensor as it is stored, by its entry of :func:`read_header`; bfloat16 as its 16 bits. BadTensors, OSError."""
    start, end = entry["data_offsets"]
    array = np.empty(entry["shape"], _READ[entry["dtype"]])
    with path.open("rb") as file:
        file.seek(start)
        if file.readinto(memoryview(array.reshape(-1).view(np.uint8))) != end - start:
            raise BadTensors("is cut short")
    return array


def read_range(path: Path, entry: dict[str, Any], start: int, stop: int) -> np.ndarray:
    """Values [start, stop) of one flat tensor, by its entry of :func:`read_header`; bfloat16 becomes float32."""
    array = np.empty(stop - start, _READ[entry["dtype"]])
    with path.open("rb") as file:
        file.seek(entry["data_offsets"][0] + start * array.itemsize)
        if file.readinto(memoryview(array.view(np.uint8))) != array.nbytes:
            raise BadTensors("is cut short")
    return (array.astype(np.uint32) << 16).view(np.float32) if entry["dtype"] == "BF16" else array

"""MindSpore's ``.ckpt`` without MindSpore: a row of protobuf messages.

message Checkpoint { repeated Value value = 1; }    Value { string tag = 1; TensorProto tensor = 2; }
TensorProto { repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3; }
(mindspore/ccsrc/utils/checkpoint.proto.) Large tensors come in several values of the same tag. A file may end with
``crc_num`` and a check sum of ten bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from models.convert.stored import TYPES, BadFile, Stored, Weights

_TYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
_NAMES = {
    "F64": "Float64", "F32": "Float32", "F16": "Float16", "BF16": "BFloat16", "I64": "Int64", "I32": "Int32",
    "I16": "Int16", "I8": "Int8", "U8": "UInt8", "BOOL": "Bool",
}  # fmt: skip
_CRC = b"crc_num"
_PART = 256 << 20
_VARINT, _BYTES = 0, 2


class _Fields:
    """The fields of a protobuf message in [start, end) of a file."""

    def __init__(self, file: IO[bytes], start: int, end: int) -> None:
        self._file, self._at, self._end = file, start, end

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """(number, start, end) of every field with a length; (number, value, -1) of whole numbers."""
        while self._at < self._end:
            key = self._varint()
            number, kind = key >> 3, key & 7
            if kind == _VARINT:
                yield number, self._varint(), -1
            elif kind == _BYTES:
                length = self._varint()
                start = self._at
                if start + length > self._end:
                    raise BadFile("is cut short, or not a checkpoint of MindSpore")
                self._at = start + length
                yield number, start, start + length
            else:
                raise BadFile("is not a checkpoint of MindSpore, or damaged")

    def _varint(self) -> int:
        value, shift = 0, 0
        self._file.seek(self._at)
        while True:
            byte = self._file.read(1)
            self._at += 1
            if not byte or self._at > self._end or shift > 63:
                raise BadFile("is cut short, or not a checkpoint of MindSpore")
            value |= (byte[0] & 0x7F) << shift
            shift += 7
            if byte[0] < 0x80:
                return value


def _text(file: IO[bytes], start: int, end: int) -> str:
    if end < 0 or end - start > 1 << 16:
        raise BadFile("is not a checkpoint of MindSpore, or damaged")
    file.seek(start)
    try:
        return file.read(end - start).decode()
    except UnicodeDecodeError:
        raise BadFile("is not a checkpoint of MindSpore, or damaged") from None


def _dims(file: IO[bytes], start: int, end: int) -> list[int]:
    """One number, or several in one field."""
    if end < 0:
        return [start]
    dims: list[int] = []
    file.seek(start)
    data = file.read(end - start)
    value, shift = 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            dims.append(value)
            value, shift = 0, 0
    return dims


def _tensor(file: IO[bytes], start: int, end: int) -> tuple[list[int], str, tuple[int, int]]:
    dims: list[int] = []
    kind, place = "", None
    for number, first, last in _Fields(file, start, end):
        if number == 1:
            dims += _dims(file, first, last)
        elif number == 2:
            kind = _text(file, first, last)
        elif number == 3 and last >= 0:
            place = (first, last)
    if place is None or not kind:
        raise BadFile("is not a checkpoint of MindSpore, or damaged")
    return dims, kind, place


def read_ckpt(path: Path) -> tuple[Weights, list[str]]:
    """Tensors by name, and names of what else is there (texts, maps). BadFile, OSError."""
    parts: dict[str, tuple[list[int], str, list[tuple[int, int]]]] = {}
    others: list[str] = []
    with path.open("rb") as file:
        end = path.stat().st_size
        if end > 17:
            file.seek(end - 17)
            end -= 17 if file.read(7) == _CRC else 0
        for number, start, stop in _Fields(file, 0, end):
            if number != 1 or stop < 0:
                raise BadFile("is not a checkpoint of MindSpore")
            tag, tensor = "", None
            for field, first, last in _Fields(file, start, stop):
                if field == 1:
                    tag = _text(file, first, last)
                elif field == 2:
                    tensor = _tensor(file, first, last)
            if tensor is None or tensor[1].lower() not in _TYPES:
                others.append(tag)
            else:
                parts.setdefault(tag, (tensor[0], tensor[1], []))[2].append(tensor[2])
    if not parts:
        raise BadFile("holds no tensors, or is not a checkpoint of MindSpore")
    return {tag: _stored(path, tag, *part) for tag, part in parts.items()}, others


def _stored(path: Path, tag: str, dims: list[int], kind: str, places: list[tuple[int, int]]) -> Stored:
    dtype = _TYPES[kind.lower()]
    # A scalar is written as [0] by some versions, as nothing by others.
    held = sum(last - first for first, last in places)
    shape = () if dims in ([0], []) and held == np.dtype(TYPES[dtype]).itemsize else tuple(dims)
    wanted = int(np.prod(shape, dtype=np.int64)) * np.dtype(TYPES[dtype]).itemsize
    if held != wanted:
        raise BadFile(f"holds {held} bytes of {tag} where {wanted} belong")

    def read() -> np.ndarray:
        data = bytearray()
        with path.open("rb") as file:
            for first, last in places:
                file.seek(first)
                data += file.read(last - first)
        return np.frombuffer(data, TYPES[dtype]).reshape(shape)

    return Stored(dtype, shape, read)


def ckpt_chunks(weights: Weights) -> Iterator[bytes]:
    """The bytes of a ``.ckpt`` with these tensors."""
    for name, stored in weights.items():
        data = np.ascontiguousarray(stored.read()).reshape(-1).view(np.uint8).data
        head = b"".join(b"\x08" + _encoded(side) for side in stored.shape)
        kind = _NAMES[stored.dtype].encode()
        head += b"\x12" + _encoded(len(kind)) + kind
        tag = name.encode()
        for start in range(0, max(len(data), 1), _PART):
            part = data[start : start + _PART]
            tensor_head = head + b"\x1a" + _encoded(len(part))
            before = b"\x0a" + _encoded(len(tag)) + tag + b"\x12" + _encoded(len(tensor_head) + len(part)) + tensor_head
            yield b"\x0a" + _encoded(len(before) + len(part)) + before
            yield bytes(part)


def _encoded(number: int) -> bytes:
    """A whole number as protobuf writes it."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)

"""npz files: the shapes of their arrays without reading them, and whole files written in one step."""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

from models.files import write_atomic

# What reading a damaged file raises.
UNREADABLE = (OSError, ValueError, TypeError, zipfile.BadZipFile, zlib.error, struct.error, EOFError)


# A file in an archive has a header of 30 bytes before its name; the last four of them are the lengths of the name and
# of what follows it (PKWARE's APPNOTE, 4.3.7).
_LOCAL_HEADER = 30
_LENGTHS = struct.Struct("<HH")


def array_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every array, from the headers alone. Raises one of ``UNREADABLE`` for a damaged file."""
    shapes = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as file:
                shapes[name.removesuffix(".npy")] = _header(file, name)[0]
    return shapes


def read_rows(path: Path, name: str, start: int, stop: int) -> np.ndarray:
    """Rows [start, stop) of an array's first axis; nothing else is read unless it is compressed.

    KeyError where there is no such array; one of ``UNREADABLE`` for a damaged file.
    """
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(f"{name}.npy")
        with archive.open(entry) as member:
            shape, column_major, dtype = _header(member, name)
            offset = member.tell()
        if not 0 <= start <= stop <= shape[0]:
            raise ValueError(f"{name} has {shape[0]} rows, {start} to {stop} are wanted")
        if entry.compress_type != zipfile.ZIP_STORED or column_major:
            return read_array(path, name)[start:stop]
    rows = np.empty((stop - start, *shape[1:]), dtype)
    with path.open("rb") as file:
        file.seek(entry.header_offset + _LOCAL_HEADER - _LENGTHS.size)
        skipped = _LOCAL_HEADER + sum(_LENGTHS.unpack(file.read(_LENGTHS.size)))
        file.seek(entry.header_offset + skipped + offset + start * rows[:1].nbytes)
        if file.readinto(memoryview(rows.reshape(-1).view(np.uint8))) != rows.nbytes:
            raise EOFError(f"{name} is cut short")
    return rows


def read_array(path: Path, name: str) -> np.ndarray:
    """A whole array. KeyError where there is none of that name; one of ``UNREADABLE`` for a damaged file."""
    with zipfile.ZipFile(path) as archive, archive.open(archive.getinfo(f"{name}.npy")) as member:
        shape, column_major, dtype = _header(member, name)
        values = np.frombuffer(bytearray(member.read()), dtype)
    return values.reshape(shape, order="F" if column_major else "C")


# A header as numpy writes it: descr, fortran_order, shape.
_HEADER = re.compile(
    rb"\{'descr': '([<>|=][a-zA-Z]\d+)', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\),? *\} *\n?"
)


def _header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, whether columns come first, dtype) of an array; the file stands at its data then.

    numpy's own reader parses it as Python, and Python before 3.12.1 fails at random when two threads do that at the
    same time (SystemError, "AST constructor recursion depth mismatch"). Loaders read in threads.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"array format {version} of {name} is unknown")
    length = struct.Struct("<H" if version == (1, 0) else "<I")
    found = _HEADER.fullmatch(file.read(length.unpack(file.read(length.size))[0]))
    if found is None:
        raise ValueError(f"{name} is not a plain array of numbers, or its header is damaged")
    dtype = np.dtype(found[1].decode())
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects")
    return tuple(int(one) for one in found[3].split(b",") if one.strip()), found[2] == b"True", dtype


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Replaces ``path`` by these arrays in one step; its folders are made."""
    data = io.BytesIO()
    np.savez(data, **arrays)
    write_atomic(path, data.getvalue(), sync=False)

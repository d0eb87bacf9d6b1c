"""npz files: the shapes of their arrays without reading them, and whole files written in one step."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

from models.files import write_atomic

# What reading a damaged file raises.
UNREADABLE = (OSError, ValueError, zipfile.BadZipFile, EOFError)


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
        if entry.compress_type != zipfile.ZIP_STORED or column_major or dtype.hasobject:
            with np.load(path, allow_pickle=False) as arrays:
                whole: np.ndarray = arrays[name][start:stop]
            return whole
    rows = np.empty((stop - start, *shape[1:]), dtype)
    with path.open("rb") as file:
        file.seek(entry.header_offset + _LOCAL_HEADER - _LENGTHS.size)
        skipped = _LOCAL_HEADER + sum(_LENGTHS.unpack(file.read(_LENGTHS.size)))
        file.seek(entry.header_offset + skipped + offset + start * rows[:1].nbytes)
        if file.readinto(memoryview(rows.reshape(-1).view(np.uint8))) != rows.nbytes:
            raise EOFError(f"{name} is cut short")
    return rows


def _header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, whether columns come first, dtype) of an array; the file stands at its data then."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"array format {version} of {name} is unknown")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    found: tuple[tuple[int, ...], bool, np.dtype] = read(file)
    return found


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Replaces ``path`` by these arrays in one step; its folders are made."""
    data = io.BytesIO()
    np.savez(data, **arrays)
    write_atomic(path, data.getvalue(), sync=False)

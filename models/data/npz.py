"""npz files: the shapes of their arrays without reading them, and whole files written in one step."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from models.files import write_atomic

# What reading a damaged file raises.
UNREADABLE = (OSError, ValueError, zipfile.BadZipFile, EOFError)


def array_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every array, from the headers alone. Raises one of ``UNREADABLE`` for a damaged file."""
    shapes = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as file:
                version = np.lib.format.read_magic(file)
                if version not in ((1, 0), (2, 0)):
                    raise ValueError(f"array format {version} of {name} is unknown")
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shapes[name.removesuffix(".npy")] = read(file)[0]
    return shapes


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Replaces ``path`` by these arrays in one step; its folders are made."""
    data = io.BytesIO()
    np.savez(data, **arrays)
    write_atomic(path, data.getvalue(), sync=False)

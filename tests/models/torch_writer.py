"""Files as ``torch.save`` writes them, without PyTorch: a pickle that names PyTorch's functions, and raw values."""

from __future__ import annotations

import io
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

_STORAGE = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(np.int64): "LongStorage",
}
LEGACY = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})


class Tensor:
    """An array that is written as a tensor. ``bf16``: of uint16 bits. A view starts at ``offset`` of its storage."""

    def __init__(self, array: np.ndarray, bf16: bool = False, transposed: bool = False) -> None:
        self.array, self.bf16, self.transposed = np.array(array, order="C"), bf16, transposed


def _rebuild_tensor_v2() -> None:
    """Stands for PyTorch's function in the pickle."""


@contextmanager
def _torch() -> Iterator[types.ModuleType]:
    """Modules of PyTorch's names for as long as a pickle is written: pickling looks names up."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2  # type: ignore[attr-defined]
    for name in (*_STORAGE.values(), "BFloat16Storage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    before = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    sys.modules |= {"torch": torch, "torch._utils": utils}
    try:
        yield torch
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class _Storage:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, torch: types.ModuleType, legacy: bool) -> None:
        super().__init__(file, protocol=2)
        self.torch, self.legacy, self.storages = torch, legacy, list[Tensor]()

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        shape = value.array.shape
        strides = tuple(step // value.array.itemsize for step in value.array.strides)
        if value.transposed:
            shape, strides = shape[::-1], strides[::-1]
        return _rebuild_tensor_v2, (_Storage(value), 0, shape, strides, False, OrderedDict())

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Storage):
            return None
        if value.tensor not in self.storages:
            self.storages.append(value.tensor)
        name = "BFloat16Storage" if value.tensor.bf16 else _STORAGE[value.tensor.array.dtype]
        key = str(self.storages.index(value.tensor))
        pid = ("storage", getattr(self.torch, name), key, "cpu", value.tensor.array.size)
        return (*pid, None) if self.legacy else pid


def _pickled(content: Any, legacy: bool) -> tuple[bytes, list[Tensor]]:
    file = io.BytesIO()
    with _torch() as torch:
        pickler = _Pickler(file, torch, legacy)
        pickler.dump(content)
    return file.getvalue(), pickler.storages


def write_zip(path: Path, content: Any) -> None:
    data, storages = _pickled(content, False)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        for key, tensor in enumerate(storages):
            archive.writestr(f"archive/data/{key}", tensor.array.tobytes())
        archive.writestr("archive/version", "3\n")


def write_legacy(path: Path, content: Any) -> None:
    data, storages = _pickled(content, True)
    with path.open("wb") as file:
        for part in LEGACY:
            file.write(pickle.dumps(part, protocol=2))
        file.write(data)
        file.write(pickle.dumps([str(key) for key in range(len(storages))], protocol=2))
        for tensor in storages:
            file.write(struct.pack("<q", tensor.array.size) + tensor.array.tobytes())

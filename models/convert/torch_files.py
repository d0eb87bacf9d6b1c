"""Files of ``torch.save`` without PyTorch: the zip format, and the one before it.

The pickle in them is run by an unpickler that knows a handful of names and nothing else: those that make up tensors,
plain containers, and a few that may stand beside weights and are replaced by empty shells. Any other name ends the
reading before anything of it is imported, so a file cannot make this process do anything.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from models.convert.stored import TYPES, BadFile, Stored, Weights

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
ZIP_START = b"PK\x03\x04"
_MAX_PICKLE = 1 << 30
_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL", "UntypedStorage": "U8",
}  # fmt: skip
_TORCH_TYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
# What stands beside weights in checkpoints of training programs. Nothing of it is looked at.
_SHELLS = {
    ("argparse", "Namespace"), ("pathlib", "PosixPath"), ("pathlib", "WindowsPath"), ("numpy", "dtype"),
    ("numpy", "ndarray"), ("numpy.core.multiarray", "scalar"), ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"), ("numpy._core.multiarray", "_reconstruct"), ("_codecs", "encode"),
    ("torch", "device"), ("torch", "Size"), ("builtins", "set"), ("__builtin__", "set"), ("collections", "Counter"),
    ("collections", "defaultdict"), ("builtins", "dict"), ("__builtin__", "dict"), ("builtins", "complex"),
}  # fmt: skip


class Shell:
    """Stands for an object nobody needs; takes whatever a pickle does to it."""

    def __init__(self, *_arguments: Any, **_keywords: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass

    def __setitem__(self, _key: Any, _value: Any) -> None:
        pass

    def append(self, _value: Any) -> None:
        pass

    def extend(self, _values: Any) -> None:
        pass

    def add(self, _value: Any) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)


class _Typed:
    """A storage's or tensor's element type, by name."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype


class _Storage:
    """A flat run of values in the file. ``load`` gives its bytes."""

    def __init__(self, dtype: str, size: int, load: Callable[[], bytes | memoryview]) -> None:
        self.dtype, self.size, self.load = dtype, size, load


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_rest: Any) -> Stored:
    """What ``torch._utils._rebuild_tensor`` and ``_rebuild_tensor_v2`` make of a storage."""
    if not isinstance(storage, _Storage):
        raise BadFile("holds a tensor without values")
    shape, strides = tuple(shape), tuple(strides)
    whole = all(type(number) is int and number >= 0 for number in (offset, *shape, *strides))
    if len(shape) != len(strides) or not whole:
        raise BadFile("holds a tensor with impossible sizes")
    last = offset + sum((side - 1) * step for side, step in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.size:
        raise BadFile("holds a tensor that reaches beyond its values")

    def read() -> np.ndarray:
        kind = np.dtype(TYPES[storage.dtype])
        flat = np.frombuffer(storage.load(), kind.newbyteorder("<"), storage.size).astype(kind, copy=False)
        if 0 in shape:
            return np.empty(shape, kind)
        view = np.lib.stride_tricks.as_strided(
            flat[offset:], shape, tuple(step * kind.itemsize for step in strides), writeable=False
        )
        return np.ascontiguousarray(view).reshape(shape)

    return Stored(storage.dtype, shape, read)


def _parameter(data: Any, *_rest: Any) -> Any:
    return data


class _Unpickler(pickle.Unpickler):
    """Knows what tensors are made of; ``storage(persistent id)`` finds their values."""

    def __init__(self, file: IO[bytes], storage: Callable[[Any], Any] | None = None) -> None:
        super().__init__(file, encoding="utf-8")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if module == "collections" and name == "OrderedDict":
            return OrderedDict
        if module == "torch._utils":
            if name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
                return _tensor
            if name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
                return _parameter
        if module in ("torch", "torch.storage", "torch.cuda"):
            if name in _STORAGES:
                return _Typed(_STORAGES[name])
            if name in _TORCH_TYPES:
                return _Typed(_TORCH_TYPES[name])
        if (module, name) in _SHELLS:
            return Shell
        if module.startswith("torch.nn."):
            raise BadFile(f"holds a whole model ({module}.{name}), not its state_dict: save that with PyTorch")
        raise BadFile(f"asks for {module}.{name}, which no weights need: it may be made to do harm, nothing was run")

    def persistent_load(self, pid: Any) -> Any:
        if self._storage is None:
            raise BadFile("refers to values where there can be none")
        return self._storage(pid)


def _load(file: IO[bytes], storage: Callable[[Any], Any] | None = None) -> Any:
    """Runs one pickle. BadFile for anything that is not data."""
    try:
        return _Unpickler(file, storage).load()
    except BadFile:
        raise
    except RecursionError:
        raise BadFile("holds a pickle nested beyond reason") from None
    except Exception as error:  # a damaged pickle may fail anywhere, in any way; none of it has run
        raise BadFile(f"holds a damaged pickle ({type(error).__name__}: {error})") from None


def _described(pid: Any) -> tuple[str, str, int, Any]:
    """(type, key, values, view or None) of a persistent id."""
    try:
        tag, kind, key, _, size, *view = pid
        if tag != "storage" or not isinstance(kind, _Typed) or not isinstance(size, int) or size < 0:
            raise ValueError
    except (TypeError, ValueError):
        raise BadFile("refers to values in an unknown way") from None
    return kind.dtype, str(key), size, view[0] if view else None


def read_zip(path: Path) -> Any:
    """What a file of the zip format holds, tensors as :class:`Stored`. BadFile, OSError."""
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        raise BadFile("is not a whole zip archive: it is cut short or damaged") from None
    names = {name.partition("/")[2]: name for name in archive.namelist()}
    if "data.pkl" not in names:
        raise BadFile("is a zip archive, but not one of torch.save (no data.pkl)")
    if "byteorder" in names and archive.read(names["byteorder"]).strip() != b"little":
        raise BadFile("was written on a machine of the other byte order")
    last: dict[str, bytes] = {}

    def load(key: str) -> bytes:
        if key not in last:
            last.clear()
            try:
                last[key] = archive.read(names[f"data/{key}"])
            except (zipfile.BadZipFile, EOFError) as error:
                raise BadFile(f"is damaged: values {key} ({error})") from None
        return last[key]

    def storage(pid: Any) -> _Storage:
        dtype, key, size, _ = _described(pid)
        if f"data/{key}" not in names:
            raise BadFile(f"has no values {key}")
        wanted = size * np.dtype(TYPES[dtype]).itemsize
        found = archive.getinfo(names[f"data/{key}"]).file_size
        if found != wanted:
            raise BadFile(f"has {found} bytes of values {key} where {wanted} belong")
        return _Storage(dtype, size, lambda: load(key))

    if archive.getinfo(names["data.pkl"]).file_size > _MAX_PICKLE:
        raise BadFile("holds a pickle of more than 1 GB")
    try:
        content = archive.read(names["data.pkl"])
    except (zipfile.BadZipFile, EOFError) as error:
        raise BadFile(f"is damaged: data.pkl ({error})") from None
    return _load(io.BytesIO(content), storage)


def read_legacy(path: Path) -> Any:
    """What a file of the format before zip holds, tensors as :class:`Stored`. BadFile, OSError."""
    places: dict[str, tuple[int, int]] = {}
    storages: dict[str, _Storage] = {}

    def load(key: str) -> bytes:
        start, size = places[key]
        with path.open("rb") as file:
            file.seek(start)
            return file.read(size)

    def storage(pid: Any) -> _Storage:
        dtype, key, size, view = _described(pid)
        if view is not None:
            raise BadFile("holds views of values, which only very old programs wrote: load and save it with PyTorch")
        if key not in storages:
            storages[key] = _Storage(dtype, size, lambda: load(key))
        return storages[key]

    with path.open("rb") as file:
        if _load(file) != _LEGACY_MAGIC:
            raise BadFile("is not a file of torch.save")
        version, system = _load(file), _load(file)
        if version != 1001 or not isinstance(system, dict) or system.get("little_endian") is not True:
            raise BadFile("is of a version, or a byte order, that cannot be read")
        content = _load(file, storage)
        keys = _load(file)
        if not isinstance(keys, list):
            raise BadFile("holds no list of its values")
        end = path.stat().st_size
        at = file.tell()
        for key in keys:
            held = storages.get(str(key))
            if held is None:
                raise BadFile(f"holds values {key} that nothing refers to")
            file.seek(at)
            count = int.from_bytes(file.read(8), "little")
            size = held.size * np.dtype(TYPES[held.dtype]).itemsize
            if count != held.size or at + 8 + size > end:
                raise BadFile("is cut short")
            places[str(key)] = (at + 8, size)
            at += 8 + size
    missing = [key for key in storages if key not in places]
    if missing:
        raise BadFile(f"is cut short: values {missing[0]} are missing")
    return content


def tensors_of(content: Any) -> tuple[Weights, list[str]]:
    """The tensors of a mapping by name, and the names of what else it holds."""
    if not isinstance(content, Mapping):
        raise BadFile("holds no mapping of names to tensors")
    weights = {str(name): value for name, value in content.items() if isinstance(value, Stored)}
    return weights, [str(name) for name, value in content.items() if not isinstance(value, Stored)]

"""Any file with weights, whatever program wrote it: recognised by its content, read tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.checkpoint.manifest import MANIFEST
from models.checkpoint.tensors import BadTensors, read_header, read_raw
from models.convert import mindspore_files, torch_files
from models.convert.stored import BadFile, Stored, Weights
from models.exits import BAD_CHECKPOINT, PayloadError

INDEX = ".index.json"
# Where training programs put the weights, the first that is there is taken.
SECTIONS = ("ema", "state_dict", "model")
# Names of weights in a folder, in the order they are looked for.
_IN_FOLDER = (
    "model.safetensors", "diffusion_pytorch_model.safetensors", "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors.index.json", "pytorch_model.bin", "diffusion_pytorch_model.bin",
    "pytorch_model.bin.index.json", "diffusion_pytorch_model.bin.index.json",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """What a file, or a row of shards, holds. ``section``: where in the file; ``others``: names that are no tensors."""

    path: Path
    format: str
    weights: Weights
    section: str = ""
    others: list[str] = field(default_factory=list)


def open_weights(path: Path, take: str | None = None) -> Source:
    """Opens a file, an index of shards, or a folder with either. PayloadError names the file and what is wrong.

    take: the section to read of files that hold several (``ema``, ``state_dict``, ``model``, or any other name).
    """
    with readable(path):
        place = _in_folder(path) if path.is_dir() else path
    with readable(place):
        return _sharded(place, take) if place.name.endswith(INDEX) else _single(place, take)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What goes wrong while weights are opened, or their values read later, as PayloadError about ``path``."""
    try:
        yield
        return
    except (BadFile, BadTensors) as error:
        why = f"it {error}"
    except OSError as error:
        why = error.strerror or str(error)
    raise PayloadError(
        BAD_CHECKPOINT, "weights cannot be read", where=str(path), why=why,
        next_step="name another file, or fetch it again",
    )  # fmt: skip


def _in_folder(path: Path) -> Path:
    for name in _IN_FOLDER:
        if (path / name).exists():
            return path / name
    if (path / MANIFEST).exists():
        raise BadFile("is a checkpoint of ostrain: ostrain ckpt export makes one file of it")
    raise BadFile(f"is a folder without weights ({', '.join(_IN_FOLDER[:2])}, …)")


def _single(path: Path, take: str | None) -> Source:
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(torch_files.ZIP_START):
        return _sections(path, "PyTorch (zip)", torch_files.read_zip(path), take)
    if start.startswith(torch_files.LEGACY_START):
        return _sections(path, "PyTorch (before zip)", torch_files.read_legacy(path), take)
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return _whole(Source(path, "safetensors", _safetensors(path)), take)
    if not start:
        raise BadFile("is empty")
    if path.suffix == ".ckpt":
        weights, others = mindspore_files.read_ckpt(path)
        return _whole(Source(path, "MindSpore", weights, "", others), take)
    if start[:1] == b"\x80" or path.suffix in (".pth", ".pt", ".bin", ".pkl"):
        # Not by torch.save. Reading it tells whether it is damaged, or something that should not be run.
        return _sections(path, "pickle", torch_files.read_legacy(path), take)
    raise BadFile("is neither safetensors nor a file of PyTorch or MindSpore")


def _whole(source: Source, take: str | None) -> Source:
    """A file without sections: one is a common beginning of names."""
    if not take:
        return source
    prefix = f"{take}."
    chosen = {name[len(prefix) :]: stored for name, stored in source.weights.items() if name.startswith(prefix)}
    if not chosen:
        raise BadFile(f"holds no section {take!r}")
    others = source.others + [name for name in source.weights if not name.startswith(prefix)]
    return Source(source.path, source.format, chosen, take, others)


def _safetensors(path: Path) -> Weights:
    def reader(entry: dict[str, Any]) -> Callable[[], Any]:
        return lambda: read_raw(path, entry)

    return {
        name: Stored(entry["dtype"], tuple(entry["shape"]), reader(entry)) for name, entry in read_header(path).items()
    }


def _sections(path: Path, kind: str, content: Any, take: str | None) -> Source:
    """The section that was asked for, or the one that holds weights."""
    if isinstance(content, Mapping) and not take:
        take = next((name for name in SECTIONS if isinstance(content.get(name), Mapping)), "")
    section = content
    for name in take.split(".") if take else ():
        if not isinstance(section, Mapping) or name not in section:
            known = ", ".join(str(key) for key, value in content.items() if isinstance(value, Mapping))
            raise BadFile(f"holds no section {take!r}; it has {known or 'none'}")
        section = section[name]
    weights, others = torch_files.tensors_of(section)
    if not weights:
        raise BadFile("holds no tensors there" if take else "holds no tensors, only " + ", ".join(others[:5]))
    if take and isinstance(content, Mapping):
        others += [str(name) for name in content if str(name) != take.split(".")[0]]
    return Source(path, kind, weights, take or "", others)


def _sharded(path: Path, take: str | None) -> Source:
    """Shards that an index of Hugging Face names."""
    try:
        names = dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise BadFile(f"is not an index of shards ({error})") from None
    shards: dict[str, Source] = {}
    for shard in sorted(set(names.values())):
        place = path.parent / str(shard)
        if place.parent != path.parent:
            raise BadFile(f"names a shard in another folder: {shard}")
        try:
            shards[shard] = _single(place, take)
        except FileNotFoundError:
            raise BadFile(f"names a shard that does not exist: {shard}") from None
        except (BadFile, BadTensors) as error:
            raise BadFile(f"names {shard}, which {error}") from None
    absent = [name for name, shard in names.items() if name not in shards[shard].weights]
    if absent:
        raise BadFile(f"names {absent[0]}, which is not in {names[absent[0]]}")
    formats = sorted({shard.format for shard in shards.values()})
    weights = {name: shards[shard].weights[name] for name, shard in names.items()}
    return Source(path, f"{', '.join(formats)} in {len(shards)} shards", weights)

"""What a checkpoint of a run holds, and how it gets back into the run: bit for bit, from rank 0's disk to all ranks."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor

from models.checkpoint.manifest import MANIFEST
from models.checkpoint.read import model_of
from models.checkpoint.tensors import BadTensors, Source, read_tensors, source
from models.config import TrainConfig
from models.exits import BAD_CHECKPOINT, BAD_CONFIG, PayloadError
from models.parallel.world import World
from models.step import TrainStep
from models.weights import load_state_dict, mismatches

MODEL, AVERAGE, OPTIMIZER = "model.safetensors", "ema.safetensors", "optimizer.safetensors"


def tensors(train: TrainStep) -> dict[str, dict[str, Source]]:
    """Files of a checkpoint with their tensors, read from the device one by one as they are written."""
    model = {name: _source(param) for name, param in train.model.parameters_and_names()}
    files = {MODEL: model}
    if train.ema is not None:
        # Frozen weights go along, so that the averages are a whole model by themselves.
        averages = {name: _source(p) for name, p in zip(train.ema.names, train.ema.averages, strict=True)}
        files[AVERAGE] = model | averages
    slots = (*train.optimizer.exp_avg, *train.optimizer.exp_avg_sq)
    files[OPTIMIZER] = {slot.name: _source(slot) for slot in slots}
    files[OPTIMIZER]["step"] = source(np.asarray(train.optimizer.count, np.int64))
    return files


def describe(config: TrainConfig, world: World, threads: int) -> dict[str, Any]:
    """The part of ``state.json`` that does not change while a run lasts."""
    return {
        "seed": config.seed,
        "config": config.model_dump(mode="json"),
        "config_sha256": fingerprint(config),
        "layout": {
            "world": world.size,
            "dp": world.size // config.layout.sp,
            "sp": config.layout.sp,
            "zero": config.layout.zero,
            "device": world.device,
            "threads": threads,
        },
        "versions": {"python": platform.python_version(), "mindspore": ms.__version__, "numpy": np.__version__},
    }


def fingerprint(config: TrainConfig) -> str:
    return hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def restore(train: TrainStep, path: Path | None) -> None:
    """Model, averages and optimizer of the checkpoint at ``path`` (rank 0's; other ranks pass None), on every rank.

    PayloadError(BAD_CHECKPOINT) on rank 0 names what does not fit; the other ranks then wait to be ended.
    """
    read = (lambda name: _read(path / name)) if path is not None else None
    _load_model(train, read)
    if train.ema is not None:
        _load(train, zip(train.ema.names, train.ema.averages, strict=True), read, AVERAGE)
    slots = [(slot.name, slot) for slot in (*train.optimizer.exp_avg, *train.optimizer.exp_avg_sq)]
    count = _load(train, slots, read, OPTIMIZER).get("step", np.asarray(0))
    train.optimizer.count = int.from_bytes(train.world.broadcast_bytes(int(count).to_bytes(8, "little")), "little")


def initialize_from(train: TrainStep, path: Path) -> None:
    """Weights of ``init_from`` into the model and its averages: read by rank 0, sent to all. PayloadError."""
    if train.world.rank == 0:
        weights = weights_of(path)
        # The table of rotary frequencies is fixed: files with and without it are both whole.
        wrong = [line for line in mismatches(train.model, weights) if not line.startswith("missing: rope.freqs ")]
        if wrong:
            shown = "\n    ".join(wrong[:20]) + (f"\n    … and {len(wrong) - 20} more" if len(wrong) > 20 else "")
            raise PayloadError(
                BAD_CHECKPOINT,
                f"weights do not fit the model: {len(wrong)} differences",
                where=str(path),
                why=f"\n    {shown}",
                next_step="make train.model describe the model these weights come from",
            )
        load_state_dict(train.model, weights, strict=False)
    spread(train)


def spread(train: TrainStep) -> None:
    """Rank 0's weights to all ranks, and from them the averages."""
    if train.world.size > 1:
        for param in train.model.get_parameters():
            param.set_data(Tensor(train.world.broadcast(param.asnumpy()), dtype=param.dtype))
    if train.ema is not None:
        for average, param in zip(train.ema.averages, train.ema.params, strict=True):
            average.set_data(Tensor(param.asnumpy().copy()))


def check_agreement(train: TrainStep) -> None:
    """PayloadError when this rank's configuration or weights are not those of rank 0."""
    if train.world.size == 1:
        return
    digest = hashlib.sha256()
    for param in train.model.get_parameters():
        digest.update(np.ascontiguousarray(param.asnumpy()).data)
    for what, mine in (("configuration", fingerprint(train.config).encode()), ("weights", digest.digest())):
        if train.world.broadcast_bytes(mine) != mine:
            raise PayloadError(
                BAD_CONFIG,
                f"{what} differ between ranks",
                where=f"rank {train.world.rank} against rank 0",
                next_step="give every node the same train.yaml and the same version of MindSpore",
            )


def _load_model(train: TrainStep, read: Callable[[str], dict[str, np.ndarray]] | None) -> None:
    if read is not None:
        load_state_dict(train.model, read(MODEL))
    if train.world.size > 1:
        for param in train.model.get_parameters():
            param.set_data(Tensor(train.world.broadcast(param.asnumpy()), dtype=param.dtype))


def _load(
    train: TrainStep,
    slots: Iterable[tuple[str, Parameter]],
    read: Callable[[str], dict[str, np.ndarray]] | None,
    name: str,
) -> Mapping[str, np.ndarray]:
    """Fills parameters from the file ``name`` by their names and sends them to all ranks; the file's tensors."""
    values = read(name) if read is not None else {}
    for key, slot in slots:
        if read is not None:
            value = values.get(key)
            if value is None or tuple(value.shape) != tuple(slot.shape):
                found = "is missing" if value is None else f"has shape {list(value.shape)}, not {list(slot.shape)}"
                raise PayloadError(
                    BAD_CHECKPOINT, f"{name} does not fit the run", why=f"{key} {found}", next_step=_OTHER_RUN
                )
            slot.set_data(Tensor(np.ascontiguousarray(value, np.float32)))
        if train.world.size > 1:
            slot.set_data(Tensor(train.world.broadcast(slot.asnumpy())))
    return values


_OTHER_RUN = "restore the model section, or start a new run with init_from"


def _source(param: Parameter) -> Source:
    return tuple(param.shape), np.dtype(np.float32), lambda: np.asarray(param.asnumpy(), np.float32)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        return read_tensors(path)
    except (BadTensors, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise PayloadError(
            BAD_CHECKPOINT, "weights cannot be read", where=str(path), why=why or "", next_step="name another file"
        ) from None


def weights_of(path: Path) -> dict[str, np.ndarray]:
    """Weights by name: of a checkpoint ``step-N`` (its model, not its averages), a model's folder, or a file."""
    if path.is_dir() and (path / MANIFEST).exists() and not (path / MODEL).exists():
        return model_of(path)
    return _read(_weights_file(path))


def _weights_file(path: Path) -> Path:
    """The weights in the folder of a published model, or the file itself."""
    if path.is_dir():
        return path / MODEL
    if path.suffix in (".ckpt", ".pth", ".pt", ".bin"):
        raise PayloadError(
            BAD_CHECKPOINT,
            "init_from is not a safetensors file",
            where=str(path),
            next_step="convert it to safetensors first",
        )
    return path

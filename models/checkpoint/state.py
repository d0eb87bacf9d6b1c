"""Facts of a run that go into its checkpoints, and the weights it starts with: the same on every rank."""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from models.checkpoint.manifest import MANIFEST
from models.checkpoint.read import model_of
from models.config import TrainConfig
from models.convert.files import open_weights, readable
from models.convert.fit import fit
from models.convert.names import to_torch
from models.convert.stored import Weights, of_array
from models.exits import BAD_CHECKPOINT, BAD_CONFIG, PayloadError
from models.parallel.world import World
from models.step import TrainStep

MODEL = "model.safetensors"


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
            "sp_kind": config.layout.sp_kind,
            "zero": config.layout.zero,
            "device": world.device,
            "threads": threads,
        },
        "versions": {"python": platform.python_version(), "mindspore": ms.__version__, "numpy": np.__version__},
    }


def fingerprint(config: TrainConfig) -> str:
    return hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def initialize_from(train: TrainStep, path: Path) -> list[str]:
    """Weights of ``init_from`` into the model: read by rank 0, sent to all. What happened, by name. PayloadError."""
    lines: list[str] = []
    if train.mesh.world.rank == 0:
        found = fit(_stored(path), train.shapes, train.config.model)
        wrong = found.problems()
        if not found.taken or (wrong and not train.config.allow_partial):
            shown = "\n    ".join(wrong[:20]) + (f"\n    … and {len(wrong) - 20} more" if len(wrong) > 20 else "")
            raise PayloadError(
                BAD_CHECKPOINT,
                f"weights do not fit the model: {len(wrong)} differences",
                where=str(path),
                why=f"\n    {shown}",
                next_step="make train.model describe the model these weights come from, or set train.allow_partial",
            )
        params = dict(train.model.parameters_and_names())
        with readable(path):
            for name, value in found.values():
                params[name].set_data(Tensor(value, dtype=params[name].dtype))
        lines = found.summary()
    spread(train)
    return lines


def spread(train: TrainStep) -> None:
    """Rank 0's weights to all ranks."""
    world = train.mesh.world
    if world.size > 1:
        for param in train.model.get_parameters():
            param.set_data(Tensor(world.broadcast(param.asnumpy()), dtype=param.dtype))


def check_agreement(train: TrainStep) -> None:
    """PayloadError when this rank's configuration or weights are not those of rank 0. Weights must be whole."""
    world = train.mesh.world
    if world.size == 1:
        return
    digest = hashlib.sha256()
    for param in train.model.get_parameters():
        digest.update(np.ascontiguousarray(param.asnumpy()).data)
    for what, mine in (("configuration", fingerprint(train.config).encode()), ("weights", digest.digest())):
        if world.broadcast_bytes(mine) != mine:
            raise PayloadError(
                BAD_CONFIG,
                f"{what} differ between ranks",
                where=f"rank {world.rank} against rank 0",
                next_step="give every node the same train.yaml and the same version of MindSpore",
            )


def weights_of(path: Path) -> dict[str, np.ndarray]:
    """Weights by PyTorch name: of a checkpoint ``step-N`` (its model, not its averages), a folder, or a file."""
    with readable(path):
        return {to_torch(name): stored.values() for name, stored in _stored(path).items()}


def _stored(path: Path) -> Weights:
    if path.is_dir() and (path / MANIFEST).exists() and not (path / MODEL).exists():
        return {name: of_array(value) for name, value in model_of(path).items()}
    return open_weights(path).weights

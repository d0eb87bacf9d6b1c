"""Tiny networks with weights to sample with, and sampling tasks of one rank in this process."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from safetensors.numpy import save_file

from models.config import ModelConfig
from models.events import Log, Reporter
from models.parallel.world import World
from models.rng import stream
from models.sampling.setup import read_sample_config
from models.task import Task

MODEL: dict[str, Any] = {
    "type": "STDiT3", "in_channels": 3, "patch_size": [1, 4, 4], "input_sq_size": 32, "hidden_size": 24, "depth": 1,
    "num_heads": 2, "pred_sigma": False, "caption_channels": 8, "model_max_length": 6,
}  # fmt: skip
# What the networks of 1.0 and 1.1 need besides.
IDDPM: dict[str, Any] = {"pred_sigma": True}


def settings(**over: Any) -> dict[str, Any]:
    """A sample of 4 frames of 8 x 12 pixels in two steps."""
    values: dict[str, Any] = {
        "model": MODEL,
        "weights": "model.safetensors",
        "autoencoder": {"type": "identity"},
        "text": {"type": "hashed", "max_length": 6, "channels": 8},
        "prompts": ["a red ball"],
        "image_size": [8, 12],
        "num_frames": 4,
        "num_sampling_steps": 2,
        "guidance_scale": 2.0,
        "dtype": "fp32",
    }
    return {key: value for key, value in (values | over).items() if value is not None}


def make_run(folder: Path, **over: Any) -> Path:
    """A run directory with ``sample.yaml`` and, where there are none, weights for its model."""
    folder.mkdir(parents=True, exist_ok=True)
    values = settings(**over)
    (folder / "sample.yaml").write_text(yaml.safe_dump(values))
    if not (folder / "model.safetensors").exists() and "model" in values:
        save_file(weights(values["model"]), folder / "model.safetensors")
    return folder


def weights(model: dict[str, Any], latent: tuple[int, int, int] = (4, 8, 12)) -> dict[str, np.ndarray]:
    """Random weights of every parameter, fixed tables left out."""
    from models.stdit import create

    network = create(ModelConfig(**model), latent)
    shapes = {name: tuple(param.shape) for name, param in network.parameters_and_names()}
    fixed = ("rope.freqs", "pos_embed", "pos_embed_temporal")
    return {
        name: stream(7, "weights", name).standard_normal(shape, np.float32) * np.float32(0.2)
        for name, shape in shapes.items()
        if name not in fixed
    }


def run(folder: Path) -> str:
    """Samples in this process to the end; what the log said."""
    from models.sampling.run import SampleRun

    said = io.StringIO()
    task = Task(folder, World(), Reporter(folder, 0), Log(said))
    (folder / "heartbeat").mkdir(exist_ok=True)
    (folder / "metrics").mkdir(exist_ok=True)
    SampleRun(read_sample_config(folder / "sample.yaml"), task).run()
    return said.getvalue()


def sample(folder: Path, **over: Any) -> str:
    return run(make_run(folder, **over))


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def frames(folder: Path) -> np.ndarray:
    """uint8 [T, H, W, 3] of a folder of PNG frames, or of one PNG file."""
    files = sorted(folder.glob("*.png")) if folder.is_dir() else [folder]
    return np.stack([np.asarray(Image.open(file)) for file in files])

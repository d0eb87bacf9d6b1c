"""Run directories for tests, and starts of ``models.train`` in them: alone or under msrun."""

from __future__ import annotations

import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from tests.models.clips import make_dataset

REPO = Path(__file__).parents[2]
TIMEOUT = 240


def settings(**over: Any) -> dict[str, Any]:
    """A tiny model on 16 x 24 pixels."""
    values: dict[str, Any] = {
        "model": {
            "in_channels": 3,
            "patch_size": [1, 4, 4],
            "input_sq_size": 32,
            "hidden_size": 32,
            "depth": 1,
            "num_heads": 4,
            "pred_sigma": False,
            "caption_channels": 8,
            "model_max_length": 4,
        },
        "autoencoder": {"type": "identity"},
        "diffusion": {"use_timestep_transform": False},
        "data": {
            "annotations": "clips/train.csv",
            "videos": "clips",
            "text_embeddings": "clips/text",
            "image_size": [16, 24],
            "num_frames": 4,
        },
        "optimizer": {"lr": 1e-3, "warmup_steps": 2},
        "mask_ratios": {"image_head": 0.3},
        "ema_decay": 0.9,
        "steps": 5,
        "batch_size": 2,
        "dtype": "bf16",
        "log": {"tensorboard": False},
    }
    for key, value in over.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) and key in values else value
    return values


def make_run(folder: Path, **over: Any) -> Path:
    """A run directory with ``train.yaml`` and a copy of the data, byte for byte the same for all runs of a test run."""
    folder.mkdir(parents=True)
    shutil.copytree(_data().name, folder / "clips")
    configure(folder, **over)
    return folder


@functools.cache
def _data() -> tempfile.TemporaryDirectory[str]:
    # Encoded once: x264 with several threads does not write the same bytes every time.
    folder = tempfile.TemporaryDirectory(prefix="ostrain-clips-")
    make_dataset(Path(folder.name))
    return folder


def configure(folder: Path, **over: Any) -> None:
    (folder / "train.yaml").write_text(yaml.safe_dump(settings(**over)))


def environment(**extra: str) -> dict[str, str]:
    names = {
        key: value for key, value in os.environ.items() if not key.startswith(("MS_", "RANK", "OSTRAIN", "DEVICE_"))
    }
    path = f"{Path(sys.executable).parent}:{names.get('PATH', '')}"
    return {**names, "PATH": path, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", **extra}


def start(folder: Path, **options: Any) -> subprocess.Popen[str]:
    """One process alone; its output goes to ``log``."""
    with (folder / "log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "models.train", "--config", "train.yaml"],
            cwd=folder,
            env=environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )


def train(folder: Path, **options: Any) -> int:
    """Trains alone to the end; the exit code."""
    process = start(folder, **options)
    try:
        return process.wait(TIMEOUT)
    finally:
        process.kill()
        process.wait()


def msrun(folder: Path, workers: int) -> int:
    """Trains under msrun to the end; its exit code. Ends whatever is left."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["msrun", f"--worker_num={workers}", f"--local_worker_num={workers}", f"--master_port={port}"]
    command += ["--log_dir=logs", "--join=True", "python", "-m", "models.train", "--config", "train.yaml"]
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=log, stderr=subprocess.STDOUT)
    try:
        return process.wait(TIMEOUT)
    finally:
        if process.poll() is None:
            # msrun ends its workers on SIGINT only.
            process.send_signal(2)
            process.wait(60)


def output(folder: Path) -> str:
    """Everything the processes of a run said."""
    files = [folder / "log", *sorted((folder / "logs").glob("*.log"))]
    return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-4000:]}" for file in files if file.exists())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def losses(folder: Path, rank: int = 0) -> dict[int, tuple[float, float]]:
    """(loss, gradient norm) by step, the latest where a step was done twice."""
    return {
        entry["step"]: (entry["loss"], entry["grad_norm"]) for entry in lines(folder / f"metrics/rank-{rank}.jsonl")
    }


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in lines(folder / "events.jsonl") if event["event"] == name]


def fault(folder: Path, rank: int = 0) -> dict[str, Any]:
    return json.loads((folder / f"faults/attempt-1/rank-{rank}.json").read_text())

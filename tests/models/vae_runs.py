"""Tiny autoencoders trained in this process, on clips made on the spot."""

from __future__ import annotations

import functools
import io
import json
import tempfile
from pathlib import Path
from typing import Any

from models.config.train_vae import TrainVaeConfig
from models.events import Log, Reporter
from models.parallel.world import World
from models.recipe import merge
from models.vae_trainer import VaeTrainer
from tests.models.clips import make_clip

AUTOENCODER = {
    "spatial": {"block_out_channels": [4, 4], "layers_per_block": 1, "norm_num_groups": 2},
    "temporal": {
        "filters": 4, "channel_multipliers": [1, 1], "temporal_downsample": [True], "num_res_blocks": 1,
        "num_groups": 2,
    },
    "micro_frame_size": 3,
}  # fmt: skip
RANDOM = {"type": "random", "channels": [2, 2, 2, 2, 2]}
STAGES: dict[str, dict[str, Any]] = {
    "stage1": {"freeze_vae_2d": True, "use_real_rec_loss": False, "use_z_rec_loss": True,
               "use_image_identity_loss": True, "mixed_strategy": "mixed_video_image", "mixed_image_ratio": 0.5},
    "stage2": {"use_real_rec_loss": False, "use_z_rec_loss": True},
    "stage3": {"mixed_strategy": "mixed_video_random", "perceptual": RANDOM, "random_crop": True},
}  # fmt: skip


@functools.cache
def clips() -> Path:
    """A folder with three clips of 10 frames and ``videos.csv``, which has no captions; made once."""
    folder = tempfile.TemporaryDirectory(prefix="ostrain-vae-clips-")
    _kept.append(folder)
    names = [f"clip{number}.mp4" for number in range(3)]
    for number, name in enumerate(names):
        make_clip(Path(folder.name) / name, 10, size=(24, 32), seed=number)
    (Path(folder.name) / "videos.csv").write_text("\n".join(["video", *names]) + "\n")
    return Path(folder.name)


_kept: list[tempfile.TemporaryDirectory[str]] = []


def config(stage: str = "stage3", **over: Any) -> TrainVaeConfig:
    values = {**STAGES[stage]}
    crop = bool(values.pop("random_crop", False))
    base: dict[str, Any] = {
        "autoencoder": AUTOENCODER,
        "data": {
            "annotations": str(clips() / "videos.csv"), "videos": str(clips()), "image_size": [16, 16],
            "num_frames": 4, "workers": 0, "random_crop": crop, "flip": crop,
        },
        "optimizer": {"lr": 1e-3},
        "batch_size": 2,
        "dtype": "fp32",
        "jit": "off",
        "log": {"tensorboard": False},
        "checkpoint": {"background": False},
        "steps": 2,
    }  # fmt: skip
    return TrainVaeConfig.model_validate(merge(merge(base, values), over))


def trained(folder: Path, settings: TrainVaeConfig) -> VaeTrainer:
    """A training run to its end."""
    for name in ("heartbeat", "metrics"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    trainer = VaeTrainer(settings, folder, World(), Reporter(folder, 0), Log(io.StringIO()))
    trainer.run()
    return trainer


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics" / "rank-0.jsonl").read_text().splitlines()]

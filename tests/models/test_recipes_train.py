"""Every recipe with its sizes shrunk: two steps of training, and a video from what came of it."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from models.config.sample import SampleConfig
from models.config.train_vae import TrainVaeConfig
from models.events import Log, Reporter
from models.parallel.world import World
from models.recipe import expand, recipe_names, recipe_task, resolve
from models.trainer import Trainer
from tests.models import samplers, vae_runs
from tests.models.clips import make_dataset

SMALL = {"in_channels": 3, "hidden_size": 24, "depth": 1, "num_heads": 2, "caption_channels": 8, "model_max_length": 6}


def recipes(task: str) -> list[str]:
    return [name for name in recipe_names() if recipe_task(name) == task and not name.endswith("base")]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips that fit the smallest bucket, 144p."""
    folder = tmp_path_factory.mktemp("clips")
    make_dataset(folder, 3, frames=30, channels=8, length=6, size=(144, 256))
    return folder


def shrunk(name: str, clips: Path) -> dict[str, Any]:
    """The recipe with a small model on pixels; all else is as the recipe has it."""
    recipe = resolve({"recipe": name})
    buckets = recipe.data.bucket_config
    data: dict[str, Any] = {
        "annotations": str(clips / "train.csv"), "videos": str(clips), "text_embeddings": str(clips / "text"),
        "workers": 0,
    }  # fmt: skip
    if buckets:
        data["bucket_config"] = {"144p": {1: [1.0, 1], 4: [1.0, 1]}}
    elif recipe.data.max_image_size:
        data |= {"max_image_size": 32, "num_frames": 4}
    else:
        data |= {"image_size": [32, 48], "num_frames": 4}
    validation = {"bucket_config": data["bucket_config"], "num_timesteps": 1} if recipe.validation else None
    return {
        "recipe": name, "model": {**SMALL, "patch_size": [1, 16, 16]}, "autoencoder": {"type": "identity"},
        "data": data, "validation": validation,
        "steps": 2, "epochs": None, "checkpoint": {"every": 2, "every_epochs": None, "background": False},
        "log": {"tensorboard": False}, "jit": "off", "max_device_memory": None,
    }  # fmt: skip


@pytest.mark.train
@pytest.mark.parametrize("name", recipes("train"))
def test_a_recipe_trains_and_samples(name: str, clips: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for folder in ("heartbeat", "metrics"):
        (run / folder).mkdir(parents=True)
    values = shrunk(name, clips) if name != "quickstart" else {**shrunk(name, clips), "mask_ratios": None}
    config = resolve(values)
    (run / "train.yaml").write_text(json.dumps(config.model_copy(update={"recipe": ""}).model_dump(mode="json")))
    Trainer(config, run, World(), Reporter(run, 0), Log(io.StringIO())).run()
    lines = [json.loads(line) for line in (run / "metrics" / "rank-0.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines)
    assert lines[0]["lr"] == pytest.approx(config.optimizer.lr / (config.optimizer.warmup_steps + 1))

    size = [144, 256] if config.data.bucket_config else [32, 48]
    said = samplers.sample(
        tmp_path / "sample", model=None, autoencoder=None, weights=str(run), image_size=size, guidance_scale=3.0
    )
    (record,) = samplers.records(tmp_path / "sample")
    assert np.isfinite(record["seconds"]) and Path(record["path"]).stat().st_size > 0, said


@pytest.mark.train
@pytest.mark.parametrize("name", recipes("sample"))
def test_a_recipe_of_sampling_samples(name: str, tmp_path: Path) -> None:
    recipe = SampleConfig.model_validate(expand({"recipe": name}, "sample"))
    model = {**(recipe.model.model_dump() if recipe.model else {}), **SMALL, "patch_size": [1, 4, 4]}
    over: dict[str, Any] = {}
    if recipe.mask_strategy:
        Image.fromarray(np.full((8, 12, 3), 90, np.uint8)).save(tmp_path / "first.png")
        over["reference_path"] = "first.png"
    values = samplers.settings(**over, recipe=name, model=model)
    # A recipe's size by name gives way to the small one.
    samplers.make_run(tmp_path, **over, recipe=name, model=model)
    (tmp_path / "sample.yaml").write_text(yaml.safe_dump({**values, "resolution": None, "aspect_ratio": None}))
    samplers.run(tmp_path)
    assert [record["frames"] for record in samplers.records(tmp_path)] == [4]


@pytest.mark.train
@pytest.mark.parametrize("name", recipes("train_vae"))
def test_a_recipe_of_autoencoders_trains(name: str, tmp_path: Path) -> None:
    tiny = vae_runs.config("stage1").model_dump(mode="json")
    over = {key: tiny[key] for key in ("data", "log", "checkpoint", "jit")}
    recipe = expand({"recipe": name}, "train_vae")
    autoencoder = {**recipe["autoencoder"], **vae_runs.AUTOENCODER}
    over |= {"steps": 2, "epochs": None, "autoencoder": autoencoder, "perceptual": vae_runs.RANDOM}
    vae_runs.trained(tmp_path, TrainVaeConfig.model_validate({**recipe, **over}))
    lines = vae_runs.metrics(tmp_path)
    assert len(lines) == 2 and all(math.isfinite(line["loss"]) for line in lines)

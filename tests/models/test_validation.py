"""Validation during training: its numbers, the averages, and that training does not notice it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.config import DataConfig, ValidationConfig
from models.events import Log, Reporter
from models.parallel.world import World
from models.recipe import resolve
from models.trainer import Trainer
from tests.models import runs


def trained(folder: Path, **over: Any) -> tuple[Trainer, list[dict[str, Any]], list[dict[str, Any]]]:
    """A run to its end in this process; its metrics and its validations."""
    runs.make_run(folder, **{"jit": "off", "steps": 4, "checkpoint": {"background": False}, **over})
    for name in ("heartbeat", "metrics"):
        (folder / name).mkdir(exist_ok=True)
    config = resolve(json.loads(json.dumps(runs.settings(**{"jit": "off", "steps": 4, **over}))))
    trainer = Trainer(config, folder, World(), Reporter(folder, 0), Log(io.StringIO()))
    trainer.run()
    metrics = [json.loads(line) for line in (folder / "metrics" / "rank-0.jsonl").read_text().splitlines()]
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return trainer, metrics, [event for event in events if event["event"] == "validated"]


@pytest.mark.train
def test_training_does_not_notice_it_and_its_numbers_are_those_of_the_averages(tmp_path: Path) -> None:
    validation = {"every": 2, "num_timesteps": 3, "batch_size": 3}
    trainer, with_it, found = trained(tmp_path / "with", validation=validation)
    _, without, none = trained(tmp_path / "without")
    assert [line["loss"] for line in with_it] == [line["loss"] for line in without] and none == []
    assert [event["step"] for event in found] == [2, 4]
    assert found[0]["clips"] == 4 and set(found[0]["by_shape"]) == {"4x16x24"}
    assert found[0]["loss"] == pytest.approx(found[0]["by_shape"]["4x16x24"])
    assert found[1]["loss"] < found[0]["loss"]

    checked = trainer._validation
    assert checked is not None
    again = checked.run()
    assert again.loss == found[1]["loss"], "the same weights, clips, times and noise"
    # The averages by hand, and the weights: other numbers.
    before = {name: param.asnumpy().copy() for name, param in trainer.train.model.parameters_and_names()}
    with trainer.train.averages():
        inside = {name: param.asnumpy().copy() for name, param in trainer.train.model.parameters_and_names()}
        with trainer.train.averages():
            by_weights = checked.run().loss
    after = {name: param.asnumpy() for name, param in trainer.train.model.parameters_and_names()}
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert any(not np.array_equal(before[name], inside[name]) for name in before)
    assert by_weights == again.loss


@pytest.mark.train
def test_other_clips_sizes_and_zero_2_with_offload(tmp_path: Path) -> None:
    validation = {"every": 4, "num_timesteps": 2, "max_clips": 2, "image_size": [16, 16], "num_frames": 2}
    _, _, plain = trained(tmp_path / "plain", validation=validation)
    _, _, offloaded = trained(tmp_path / "offloaded", validation=validation, optimizer={"offload": True})
    assert set(plain[0]["by_shape"]) == {"2x16x16"} and plain[0]["clips"] == 2
    assert offloaded[0]["loss"] == plain[0]["loss"]


def test_what_is_not_said_is_as_in_training() -> None:
    training = DataConfig(annotations="a.csv", videos="v", image_size=(16, 24), num_frames=4)
    other = ValidationConfig(annotations="b.csv", bucket_config={"144p": {1: (1.0, 2)}}).data(training)
    assert (other.annotations, other.videos, other.image_size, other.num_frames) == ("b.csv", "v", None, 4)
    assert other.bucket_config == {"144p": {1: (1.0, 2)}}
    with pytest.raises(ValueError, match="image_size and bucket_config both say"):
        ValidationConfig(image_size=(8, 8), bucket_config={})

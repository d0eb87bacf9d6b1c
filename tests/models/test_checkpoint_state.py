"""A checkpoint back in the model: bit for bit; weights from elsewhere: whole or refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from models.checkpoint import state
from models.checkpoint.find import Found, find
from models.checkpoint.manifest import Manifest
from models.checkpoint.pieces import KINDS
from models.checkpoint.restore import restore
from models.checkpoint.saver import Saver
from models.config import CheckpointConfig, TrainConfig
from models.exits import BAD_CHECKPOINT, PayloadError
from models.parallel.mesh import Mesh
from models.parallel.world import World
from models.step import TrainStep
from models.weights import state_dict
from tests.models.runs import settings

pytestmark = pytest.mark.train


def build(seed: int = 1, **over: object) -> TrainStep:
    config = TrainConfig.model_validate(settings(jit="off", seed=seed, **over))
    return TrainStep(config, Mesh(World(), config.layout), fixed_shape=True)


def scrambled() -> TrainStep:
    """A step whose tensors are all random, and different from each other."""
    train = build(1)
    train.prepare()
    random = np.random.default_rng(0)

    def read(ranges: list[tuple[str, str, int, int]]) -> Iterator[np.ndarray]:
        return (random.standard_normal(stop - start).astype(np.float32) for _, _, start, stop in ranges)

    train.load(read, KINDS, 12345)
    return train


def save(train: TrainStep, folder: Path, step: int = 7) -> Found:
    saver = Saver(folder, World(), "n", CheckpointConfig())
    saver.begin(step, list(train.pieces()), {"updates": train.update.count, "loss_scale": train.scale.state()})
    assert saver.drain() is not None
    return find(folder, World(), "n")


def contents(train: TrainStep) -> dict[str, bytes]:
    return {f"{piece.key}@{piece.start}": piece.values().tobytes() for piece in train.pieces()}


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    first, second = scrambled(), build(2)
    assert restore(second, save(first, tmp_path), World()) == []
    assert contents(first) == contents(second)
    assert second.update.count == 12345


def test_tensors_have_the_original_names(tmp_path: Path) -> None:
    found = save(scrambled(), tmp_path)
    assert found.manifest is not None
    keys = set(found.manifest.tensors)
    assert {f"model/{name}" for name in state_dict(build().model)} <= keys
    assert {f"{kind}/final_layer.linear.bias" for kind in KINDS} <= keys
    assert found.manifest == Manifest.decode((found.path / "manifest.json").read_bytes())


def test_averages_newly_switched_on_start_from_the_weights(tmp_path: Path) -> None:
    train = build(1, ema_decay=None)
    train.prepare()
    found = save(train, tmp_path)
    other = build(2)
    assert restore(other, found, World()) == ["the checkpoint has no ema: it starts anew"]
    values = contents(other)
    assert values["ema/t_block.1.bias@0"] == values["model/t_block.1.bias@0"]


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    found = save(scrambled(), tmp_path)
    with pytest.raises(PayloadError) as caught:
        restore(build(model={"hidden_size": 64}), found, World())
    assert caught.value.exit_code == BAD_CHECKPOINT
    assert "t_block.1.bias is [192], the run has [384]" in caught.value.why


def test_init_from_takes_all_or_nothing(tmp_path: Path) -> None:
    weights = state_dict(build(1).model)
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({name: value for name, value in weights.items() if name != "rope.freqs"}, path)
    train = build(2)
    state.initialize_from(train, tmp_path)
    assert state_dict(train.model)["x_embedder.proj.weight"].tobytes() == weights["x_embedder.proj.weight"].tobytes()

    wrong = dict(weights)
    wrong["extra.weight"] = wrong.pop("x_embedder.proj.bias")
    safetensors.numpy.save_file(wrong, path)
    before = state_dict(train.model)
    with pytest.raises(PayloadError) as caught:
        state.initialize_from(train, path)
    assert "2 differences" in caught.value.what
    assert "missing: x_embedder.proj.bias" in caught.value.why and "unexpected: extra.weight" in caught.value.why
    assert all(np.array_equal(before[name], value) for name, value in state_dict(train.model).items())


def test_init_from_a_checkpoint_takes_its_model(tmp_path: Path) -> None:
    first, second = scrambled(), build(2)
    path = save(first, tmp_path).path
    state.initialize_from(second, path)
    left, right = state_dict(first.model), state_dict(second.model)
    assert all(left[name].tobytes() == right[name].tobytes() for name in left)
    (path / "shard-00000-of-00001.safetensors").unlink()
    with pytest.raises(PayloadError) as caught:
        state.initialize_from(second, path)
    assert caught.value.exit_code == BAD_CHECKPOINT and "shard-00000-of-00001" in caught.value.why
    assert "ostrain ckpt export" in caught.value.next_step


@pytest.mark.parametrize("name", ["none.safetensors", "weights.pth", "text.safetensors"])
def test_init_from_something_else(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.safetensors").write_text("no tensors at all, but long enough to be read")
    with pytest.raises(PayloadError) as caught:
        state.initialize_from(build(), tmp_path / name)
    assert caught.value.exit_code == BAD_CHECKPOINT and caught.value.next_step

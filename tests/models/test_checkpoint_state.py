"""A checkpoint back in the model: bit for bit; weights from elsewhere: whole or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from mindspore import Tensor

from models.checkpoint import state, write
from models.config import TrainConfig
from models.exits import BAD_CHECKPOINT, PayloadError
from models.parallel.world import World
from models.step import TrainStep
from models.weights import state_dict
from tests.models.runs import settings

pytestmark = pytest.mark.train


def build(seed: int = 1, **over: object) -> TrainStep:
    return TrainStep(TrainConfig.model_validate(settings(jit="off", seed=seed, **over)), World(), fixed_shape=True)


def scramble(train: TrainStep) -> None:
    random = np.random.default_rng(0)
    slots = [*train.params, *train.optimizer.exp_avg, *train.optimizer.exp_avg_sq]
    for slot in [*slots, *(train.ema.averages if train.ema else [])]:
        slot.set_data(Tensor(random.standard_normal(slot.shape).astype(np.float32)))
    train.optimizer.count = 12345


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    first, second = build(1), build(2)
    scramble(first)
    path = write(tmp_path, 7, state.tensors(first), {})
    state.restore(second, path)
    for left, right in (
        (state_dict(first.model), state_dict(second.model)),
        (first.optimizer.state_dict(), second.optimizer.state_dict()),
        (first.ema.state_dict(), second.ema.state_dict()),
    ):
        assert set(left) == set(right)
        assert all(left[name].tobytes() == right[name].tobytes() for name in left)
    assert second.optimizer.count == 12345


def test_files_hold_the_original_names(tmp_path: Path) -> None:
    path = write(tmp_path, 1, state.tensors(build()), {})
    model = safetensors.numpy.load_file(path / "model.safetensors")
    assert {"x_embedder.proj.weight", "spatial_blocks.0.attn.qkv.weight", "final_layer.linear.bias"} <= set(model)
    assert set(safetensors.numpy.load_file(path / "ema.safetensors")) == set(model)
    assert "exp_avg_sq.final_layer.linear.bias" in safetensors.numpy.load_file(path / "optimizer.safetensors")


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, 1, state.tensors(build()), {})
    other = build(model={"hidden_size": 64})
    with pytest.raises(PayloadError) as caught:
        state.restore(other, path)
    assert caught.value.exit_code == BAD_CHECKPOINT
    (path / "ema.safetensors").unlink()
    with pytest.raises(PayloadError, match="weights cannot be read"):
        state.restore(build(), path)


def test_init_from_takes_all_or_nothing(tmp_path: Path) -> None:
    source = build(1)
    weights = state_dict(source.model)
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({name: value for name, value in weights.items() if name != "rope.freqs"}, path)
    train = build(2)
    state.initialize_from(train, tmp_path)
    assert state_dict(train.model)["x_embedder.proj.weight"].tobytes() == weights["x_embedder.proj.weight"].tobytes()
    assert train.ema is not None
    assert train.ema.state_dict()["t_block.1.bias"].tobytes() == weights["t_block.1.bias"].tobytes()

    wrong = dict(weights)
    wrong["extra.weight"] = wrong.pop("x_embedder.proj.bias")
    safetensors.numpy.save_file(wrong, path)
    before = state_dict(train.model)
    with pytest.raises(PayloadError) as caught:
        state.initialize_from(train, path)
    assert "2 differences" in caught.value.what
    assert "missing: x_embedder.proj.bias" in caught.value.why and "unexpected: extra.weight" in caught.value.why
    assert all(np.array_equal(before[name], value) for name, value in state_dict(train.model).items())


@pytest.mark.parametrize("name", ["none.safetensors", "weights.pth", "text.safetensors"])
def test_init_from_something_else(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.safetensors").write_text("no tensors at all, but long enough to be read")
    with pytest.raises(PayloadError) as caught:
        state.initialize_from(build(), tmp_path / name)
    assert caught.value.exit_code == BAD_CHECKPOINT and caught.value.next_step

"""STDiT3: names, initial weights, freezing, what masks and drop ids do, PyNative against a compiled graph."""

from __future__ import annotations

import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from safetensors.numpy import load_file

from models.config import ModelConfig
from models.exits import PayloadError
from models.rng import stream
from models.stdit import STDiT3, build_model, config_from_init
from models.weights import load_state_dict, mismatches, state_dict

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden"
TINY = {
    "in_channels": 3, "hidden_size": 16, "depth": 1, "num_heads": 2, "caption_channels": 6, "model_max_length": 4,
    "patch_size": (1, 2, 2),
}  # fmt: skip

pytestmark = pytest.mark.train


def tiny(**options: object) -> STDiT3:
    """A small model whose zero-initialised layers are filled, so that everything matters."""
    model = build_model(ModelConfig(**{**TINY, **options}), seed=3)
    generator = stream(1, "fill")
    for param in model.get_parameters():
        if not np.any(param.asnumpy()):
            param.set_data(Tensor(generator.standard_normal(param.shape).astype(np.float32) * 0.2))
    return model


def arguments(batch: int = 2, frames: int = 3, height: int = 4, width: int = 6) -> list[Tensor]:
    """x, timestep, y, mask, x_mask, fps, height, width."""
    draw = stream(0, "inputs").standard_normal
    x = draw((batch, 3, frames, height, width)).astype(np.float32)
    y = draw((batch, 1, 4, 6)).astype(np.float32)
    mask = np.ones((batch, 4), np.int64)
    mask[0, 2:] = 0
    x_mask = np.ones((batch, frames), bool)
    x_mask[-1, 0] = False
    numbers = [np.full(batch, value, np.float32) for value in (24.0, 64.0, 96.0)]
    timestep = np.linspace(100, 900, batch).astype(np.float32)
    return [Tensor(value) for value in (x, timestep, y, mask, x_mask, *numbers)]


@pytest.mark.parametrize("case", ["03b_stdit3_options", "05_rflow_v1_2", "09_train_trace"])
def test_parameters_are_the_original_state_dict(case: str) -> None:
    init = json.loads((GOLDEN / case / "config.json").read_text())["init"]
    weights = load_file(GOLDEN / case / "weights.safetensors")
    model = build_model(config_from_init(init), seed=0)
    assert {k: v.shape for k, v in state_dict(model).items()} == {k: v.shape for k, v in weights.items()}
    assert {name for name, param in model.parameters_and_names() if name != param.name} == set()
    np.testing.assert_array_equal(state_dict(model)["rope.freqs"], weights["rope.freqs"])


def test_state_dict_round_trip_is_exact() -> None:
    source, target = tiny(), build_model(ModelConfig(**TINY), seed=9)
    assert load_state_dict(target, state_dict(source)) == []
    for name, value in state_dict(source).items():
        np.testing.assert_array_equal(state_dict(target)[name], value)


def test_state_dict_differences_are_named_and_change_nothing() -> None:
    model = tiny()
    before = state_dict(model)
    state = dict(before)
    del state["final_layer.linear.bias"]
    state["module.extra"] = np.zeros(2, np.float32)
    state["t_block.1.bias"] = np.zeros(5, np.float32)
    expected = [
        "missing: final_layer.linear.bias [24]",
        "unexpected: module.extra [2]",
        "shape: t_block.1.bias is [5], the model has [96]",
    ]
    assert mismatches(model, state) == expected
    with pytest.raises(PayloadError) as caught:
        load_state_dict(model, state | {"x_embedder.proj.bias": np.full(16, 7.0, np.float32)})
    assert all(line in caught.value.why for line in expected)
    np.testing.assert_array_equal(state_dict(model)["x_embedder.proj.bias"], before["x_embedder.proj.bias"])
    assert load_state_dict(model, state, strict=False) == expected


def test_initial_weights_depend_on_the_seed_alone() -> None:
    ms.set_seed(1)
    first = state_dict(build_model(ModelConfig(**TINY), seed=5))
    ms.set_seed(2)
    np.random.seed(2)
    second = state_dict(build_model(ModelConfig(**TINY), seed=5))
    other = state_dict(build_model(ModelConfig(**TINY), seed=6))
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])
    assert not np.array_equal(first["t_block.1.weight"], other["t_block.1.weight"])
    deeper = state_dict(build_model(ModelConfig(**{**TINY, "depth": 2}), seed=5))
    np.testing.assert_array_equal(deeper["spatial_blocks.0.mlp.fc1.weight"], first["spatial_blocks.0.mlp.fc1.weight"])


def test_initial_weights_follow_the_original() -> None:
    weights = state_dict(build_model(ModelConfig(**{**TINY, "hidden_size": 64}), seed=0))
    for name in ("attn.proj.weight", "cross_attn.proj.weight", "mlp.fc2.weight"):
        assert not weights[f"temporal_blocks.0.{name}"].any()
        assert weights[f"spatial_blocks.0.{name}"].any()
    assert not weights["fps_embedder.mlp.2.weight"].any()
    assert weights["final_layer.linear.weight"].any()
    bound = np.sqrt(6 / (64 + 192))
    largest = np.abs(weights["spatial_blocks.0.attn.qkv.weight"]).max()
    assert 0.98 * bound < largest <= bound
    assert weights["fps_embedder.mlp.0.weight"].std() == pytest.approx(0.02, rel=0.05)
    assert weights["spatial_blocks.0.scale_shift_table"].std() == pytest.approx(64**-0.5, rel=0.15)
    assert (weights["temporal_blocks.0.attn.q_norm.weight"] == 1).all()


def test_freezing() -> None:
    def frozen(**options: object) -> set[str]:
        model = STDiT3(ModelConfig(**{**TINY, **options}))
        return {name for name, param in model.parameters_and_names() if not param.requires_grad}

    buffers = {"rope.freqs", "y_embedder.y_embedding"}
    assert frozen() == buffers
    projections = {f"y_embedder.y_proj.fc{i}.{part}" for i in (1, 2) for part in ("weight", "bias")}
    assert frozen(freeze_y_embedder=True) == buffers | projections
    model = STDiT3(ModelConfig(**TINY, only_train_temporal=True))
    assert all(param.name.startswith("temporal_blocks.") for param in model.trainable_params())
    assert len(model.trainable_params()) == 17


@pytest.mark.parametrize("shape", [(1, 4, 6), (3, 5, 7), (2, 3, 3)])
def test_output_has_the_input_size(shape: tuple[int, int, int]) -> None:
    out = tiny()(*arguments(2, *shape))
    assert (out.shape, out.dtype) == ((2, 6, *shape), ms.float32)
    assert np.isfinite(out.asnumpy()).all()


def test_hidden_tokens_do_not_matter_and_visible_ones_do() -> None:
    model, inputs = tiny(), arguments()
    base = model(*inputs).asnumpy()
    y = inputs[2].asnumpy().copy()
    y[0, 0, 2:] += 5.0
    inputs[2] = Tensor(y)
    np.testing.assert_array_equal(model(*inputs).asnumpy(), base)
    y[0, 0, 0] += 5.0
    inputs[2] = Tensor(y)
    changed = np.abs(model(*inputs).asnumpy() - base).max((1, 2, 3, 4))
    assert changed[0] > 1e-4
    assert changed[1] == 0


def test_mask_rows_repeat_for_guidance() -> None:
    model, inputs = tiny(), arguments(4)
    half = inputs[3].asnumpy()[:2]
    whole = model(*inputs[:3], Tensor(np.tile(half, (2, 1))), *inputs[4:]).asnumpy()
    np.testing.assert_array_equal(model(*inputs[:3], Tensor(half), *inputs[4:]).asnumpy(), whole)


def test_dropped_captions_become_the_null_caption() -> None:
    model, inputs = tiny(), arguments()
    dropped = model(*inputs, drop_ids=Tensor(np.array([0, 1], np.int32))).asnumpy()
    y = inputs[2].asnumpy().copy()
    y[1, 0] = state_dict(model)["y_embedder.y_embedding"]
    inputs[2] = Tensor(y)
    np.testing.assert_array_equal(model(*inputs).asnumpy(), dropped)


def test_x_mask_all_true_is_no_mask() -> None:
    model, inputs = tiny(), arguments()
    inputs[4] = Tensor(np.ones((2, 3), bool))
    np.testing.assert_allclose(model(*inputs[:4], None, *inputs[5:]).asnumpy(), model(*inputs).asnumpy(), atol=1e-6)


def test_packed_text_equals_masked_text() -> None:
    packed, padded = tiny(skip_y_embedder=True), tiny()
    load_state_dict(packed, state_dict(padded))
    inputs = arguments()
    projected = padded.y_embedder(inputs[2]).asnumpy()
    text = np.concatenate([projected[0, 0, :2], projected[1, 0]])[None]
    lengths = Tensor(np.array([2, 4], np.int64))
    out = packed(inputs[0], inputs[1], Tensor(text), lengths, *inputs[4:]).asnumpy()
    np.testing.assert_allclose(out, padded(*inputs).asnumpy(), atol=2e-6)


def test_half_precision_stays_close() -> None:
    full, half = tiny(), STDiT3(ModelConfig(**TINY), dtype="fp16")
    load_state_dict(half, state_dict(full))
    reference = full(*arguments()).asnumpy()
    out = half(*arguments())
    assert out.dtype == ms.float32
    assert 0 < np.abs(out.asnumpy() - reference).max() < 0.02 * np.abs(reference).max()


def test_gradients_under_jit_equal_pynative() -> None:
    model = tiny()
    inputs = arguments(1, 2, 4, 3)
    params = model.trainable_params()

    def loss(*values: Tensor) -> Tensor:
        out = model(*values)
        return (out * out).mean()

    value_and_grad = ms.value_and_grad(loss, None, params)

    def step(*values: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return value_and_grad(*values)

    value, grads = step(*inputs)
    compiled_value, compiled = ms.jit(step)(*inputs)
    assert float(compiled_value.asnumpy()) == pytest.approx(float(value.asnumpy()), rel=1e-6)
    for param, grad, other in zip(params, grads, compiled, strict=True):
        assert np.abs(grad.asnumpy()).max() > 0, param.name
        if not param.name.endswith("cross_attn.kv_linear.bias"):  # its key half has no true gradient
            scale = np.abs(grad.asnumpy()).max()
            np.testing.assert_allclose(other.asnumpy(), grad.asnumpy(), atol=5e-6 * scale, err_msg=param.name)

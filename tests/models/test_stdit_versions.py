"""STDiT and STDiT2: names, fixed tables, sizes, freezing, initial weights, IDDPM training. Numbers: test_parity."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from mindspore import ops as P
from safetensors.numpy import load_file

from models.config import ModelConfig
from models.diffusion import build as build_process
from models.diffusion import iddpm_options
from models.exits import PayloadError
from models.parallel.mesh import Mesh
from models.parallel.world import World
from models.shapes import parameter_shapes
from models.stdit import Transformer, build, config_from_init, create
from models.step import TrainStep
from models.weights import load_state_dict, state_dict
from tests.layouts import cases

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden"
SHARED = GOLDEN.parents[3] / "shared" / "golden"
TINY = {"in_channels": 3, "hidden_size": 24, "depth": 2, "num_heads": 2, "caption_channels": 6, "model_max_length": 4}
LATENTS = (2, 4, 6)
KNOWN = [("06a_iddpm_v1_0", "STDiT"), ("06b_iddpm_v1_1", "STDiT2"), ("05_rflow_v1_2", "STDiT3")]
KNOWN += [(name, kind) for name, kind in (("01_stdit_v1_0", "STDiT"), ("02_stdit2_v1_1", "STDiT2"))
          if (SHARED / name).is_dir()]  # fmt: skip

pytestmark = pytest.mark.train


def tiny(kind: str, **options: Any) -> Transformer:
    return build(ModelConfig(**{"type": kind, **TINY, **options}), LATENTS, seed=3)


@pytest.mark.parametrize(("case", "kind"), KNOWN)
def test_parameters_are_the_original_state_dict(case: str, kind: str) -> None:
    folder = GOLDEN / case if (GOLDEN / case).is_dir() else SHARED / case
    init = json.loads((folder / "config.json").read_text())["init"]
    weights = load_file(folder / "weights.safetensors")
    size = init["input_size"]
    model = build(config_from_init(init, kind), tuple(size) if kind == "STDiT" else None)
    own = state_dict(model)
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in weights.items()}
    grid = model.token_grid(*size) if kind == "STDiT" else None
    assert parameter_shapes(model.config, grid) == {k: v.shape for k, v in weights.items()}
    assert all(name == param.name for name, param in model.parameters_and_names())
    for table in ("pos_embed", "pos_embed_temporal", "rope.freqs"):
        if table in weights:
            np.testing.assert_allclose(own[table], weights[table], atol=2e-7, err_msg=table)


@pytest.mark.parametrize("kind", ["STDiT", "STDiT2"])
def test_initial_weights_follow_the_original(kind: str) -> None:
    weights = state_dict(tiny(kind, hidden_size=96))
    for name in ("blocks.0.attn_temp.proj", "blocks.1.cross_attn.proj", "final_layer.linear"):
        assert not weights[f"{name}.weight"].any() and not weights[f"{name}.bias"].any()
    assert weights["blocks.0.attn.proj.weight"].any() and weights["x_embedder.proj.bias"].any()
    assert weights["t_block.1.weight"].std() == pytest.approx(0.02, rel=0.05)
    assert weights["blocks.0.scale_shift_table"].std() == pytest.approx(96**-0.5, rel=0.15)


def test_scales_divide_positions() -> None:
    plain, scaled = state_dict(tiny("STDiT")), state_dict(tiny("STDiT", space_scale=0.5, time_scale=2.0))
    assert not np.array_equal(plain["pos_embed"], scaled["pos_embed"])
    np.testing.assert_allclose(scaled["pos_embed_temporal"][0, 1, 0], np.sin(0.5), atol=1e-6)
    np.testing.assert_allclose(scaled["pos_embed"][0, 1, 0], np.sin(2.0), atol=1e-6)


def test_freezing() -> None:
    def trained(kind: str, **options: Any) -> set[str]:
        return {param.name for param in tiny(kind, **options).trainable_params()}

    for kind in ("STDiT", "STDiT2"):
        everything = trained(kind)
        assert everything.isdisjoint({"pos_embed", "pos_embed_temporal", "rope.freqs", "y_embedder.y_embedding"})
        assert {name for name in everything if "attn_temp" in name} == trained(kind, freeze="not_temporal")
        assert everything - trained(kind, freeze="text") == {name for name in everything if "cross_attn" in name}
        assert len(everything - trained(kind, freeze_y_embedder=True)) == 4


def test_stdit_is_made_for_one_size() -> None:
    with pytest.raises(PayloadError, match="samples of one size") as caught:
        build(ModelConfig(type="STDiT", **TINY))
    assert "STDiT2" in caught.value.next_step
    with pytest.raises(PayloadError, match="does not fit"):
        build(ModelConfig(type="STDiT", **TINY), (2, 5, 6))
    model = tiny("STDiT")
    text = Tensor(np.zeros((1, 1, 4, 6), np.float32))
    x, t = np.zeros((1, 3, *LATENTS), np.float32), Tensor(np.array([5.0], np.float32))
    assert model(Tensor(x), t, text).shape == (1, 6, *LATENTS)
    with pytest.raises(ValueError, match="another size"):
        model(Tensor(x[:, :, :1]), t, text)
    with pytest.raises(ValueError, match="no conditioning frames"):
        model(Tensor(x), t, text, None, Tensor(np.ones((1, 2), bool)))


@pytest.mark.parametrize("shape", [(1, 4, 6), (3, 5, 7)])
def test_stdit2_takes_any_size(shape: tuple[int, int, int]) -> None:
    model = tiny("STDiT2")
    draw = np.random.default_rng(0).standard_normal
    x, text = draw((2, 3, *shape)).astype(np.float32), draw((2, 1, 4, 6)).astype(np.float32)
    one = [Tensor(np.full(1, value, np.float32)) for value in (24, 40, 56, shape[0], 40 / 56)]
    # Sizes of one row stand for all samples.
    out = model(Tensor(x), Tensor(np.array([3.0, 9.0], np.float32)), Tensor(text), None, None, *one)
    assert out.shape == (2, 6, *shape)


@pytest.mark.parametrize("kind", ["STDiT", "STDiT2"])
def test_half_precision_stays_close(kind: str) -> None:
    full = tiny(kind)
    draw = np.random.default_rng(1).standard_normal
    for param in full.get_parameters():
        if not param.asnumpy().any():
            param.set_data(Tensor((0.1 * draw(param.shape)).astype(np.float32)))
    half = create(full.config, LATENTS, dtype="fp16")
    load_state_dict(half, state_dict(full))
    x, text = Tensor(draw((1, 3, *LATENTS)).astype(np.float32)), Tensor(draw((1, 1, 4, 6)).astype(np.float32))
    one = [Tensor(np.full(1, value, np.float32)) for value in (24, 40, 56, 2, 40 / 56)]
    x_mask = None if kind == "STDiT" else Tensor(np.array([[True, False]]))
    outs = [model(x, Tensor(np.array([30.0], np.float32)), text, None, x_mask, *one) for model in (full, half)]
    reference = outs[0].asnumpy()
    assert outs[1].dtype == ms.float32
    assert 0 < np.abs(outs[1].asnumpy() - reference).max() < 0.02 * np.abs(reference).max()


def settings(kind: str, process: str = "iddpm", **changes: Any) -> Any:
    model = {"type": kind, "in_channels": 3, "hidden_size": 24, "depth": 1, "num_heads": 2, "patch_size": [1, 2, 2],
             "caption_channels": cases.TEXT[1], "model_max_length": cases.TEXT[0]}  # fmt: skip
    data = {"image_size": [10, 6], "num_frames": 5}
    masks = None if kind == "STDiT" else {"random": 0.5}
    return cases.config(cases.Case(), model=model, data=data, diffusion={"type": process}, mask_ratios=masks, **changes)


def train(config: Any, steps: int = 2) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses, and the weights in the end."""
    step = TrainStep(config, Mesh(World(), config.layout), fixed_shape=True)
    for param in step.model.trainable_params():
        if not param.asnumpy().any():  # so that everything matters from the first step on
            draw = np.random.default_rng(len(param.name)).standard_normal(param.shape)
            param.set_data(Tensor((0.1 * draw).astype(np.float32)))
    step.prepare()
    losses = []
    for number in range(steps):
        batch = cases.batch_of([cases.sample(number, slot, cases.SIZE) for slot in range(2)], cases.SIZE)
        mask = None if config.mask_ratios is None else batch.x_mask
        result = step.run([replace(batch, t=np.floor(batch.t), x_mask=mask)], 1e-3)
        assert result.applied and result.grad_norm > 0.01
        losses.append(result.loss)
    return losses, state_dict(step.model)


@pytest.mark.parametrize("kind", ["STDiT", "STDiT2", "STDiT3"])
def test_iddpm_trains_every_model_and_recomputation_changes_nothing(kind: str) -> None:
    losses, weights = train(settings(kind))
    again, same = train(settings(kind, recompute=True))
    assert losses == again and np.isfinite(losses).all()
    assert all(np.array_equal(weights[name], same[name]) for name in weights)
    before = state_dict(build(settings(kind).model, cases.SIZE[1:], seed=7))
    moved = {name for name in weights if not np.array_equal(weights[name], before[name])}
    assert {"x_embedder.proj.weight", "y_embedder.y_proj.fc1.weight", "final_layer.linear.weight"} <= moved


def test_compiled_gradients_of_stdit2_are_the_eager_ones() -> None:
    model = tiny("STDiT2", depth=1)
    draw = np.random.default_rng(1).standard_normal
    for param in model.trainable_params():
        if not param.asnumpy().any():
            param.set_data(Tensor((0.1 * draw(param.shape)).astype(np.float32)))
    params = model.trainable_params()
    x, text = Tensor(draw((1, 3, *LATENTS)).astype(np.float32)), Tensor(draw((1, 1, 4, 6)).astype(np.float32))
    one = [Tensor(np.full(1, value, np.float32)) for value in (24, 40, 56, 2, 40 / 56)]

    def loss(x: Tensor) -> Tensor:
        mask = Tensor(np.array([[True, False]]))
        out = model(x, Tensor(np.array([30.0], np.float32)), text, None, mask, *one)
        return (out * out).mean()

    step = ms.value_and_grad(loss, None, params)

    def run(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return step(x)

    value, gradients = run(x)
    compiled_value, compiled = ms.jit(run)(x)
    assert float(compiled_value.asnumpy()) == pytest.approx(float(value.asnumpy()), rel=1e-6)
    for param, gradient, other in zip(params, gradients, compiled, strict=True):
        if not param.name.endswith("cross_attn.kv_linear.bias"):  # its key half has no true gradient
            scale = np.abs(gradient.asnumpy()).max()
            assert scale > 0, param.name
            np.testing.assert_allclose(other.asnumpy(), gradient.asnumpy(), atol=1e-5 * scale, err_msg=param.name)


def test_compiled_iddpm_keeps_its_gradients() -> None:
    """Graphs drop gradients where they meet Python's objects, without an error."""
    process = build_process(settings("STDiT2").diffusion, settings("STDiT2").model)
    draw = np.random.default_rng(0).standard_normal
    values = [Tensor(draw((2, 3, 2, 4, 4)).astype(np.float32)) for _ in range(2)]
    noise_part, variance_part = (ms.Parameter(Tensor(np.float32(value)), name=str(value)) for value in (0.7, 0.3))

    def model(x: Tensor, *_conditions: Tensor) -> Tensor:
        return P.concat((x * noise_part, x * variance_part), 1)

    def loss(x: Tensor, t: Tensor, noise: Tensor, mask: Tensor) -> Tensor:
        rest = (None, None, mask, None, None, None, None, None)
        return process.loss(model, x, t, noise, *rest).sum()

    step = ms.value_and_grad(loss, None, ms.ParameterTuple([noise_part, variance_part]))

    def run(x: Tensor, t: Tensor, noise: Tensor, mask: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return step(x, t, noise, mask)

    mask = Tensor(np.array([[True, False], [True, True]]))
    arguments = (values[0], Tensor(np.array([0.0, 400.0], np.float32)), values[1], mask)
    value, gradients = run(*arguments)
    compiled_value, compiled = ms.jit(run)(*arguments)
    assert float(compiled_value.asnumpy()) == pytest.approx(float(value.asnumpy()), rel=1e-5)
    for gradient, other in zip(gradients, compiled, strict=True):
        assert abs(float(gradient.asnumpy())) > 1e-4
        assert float(other.asnumpy()) == pytest.approx(float(gradient.asnumpy()), rel=1e-4)


def test_steps_are_drawn_evenly_and_respaced_ones_are_told_in_full() -> None:
    config = settings("STDiT2", process="iddpm")
    process = build_process(config.diffusion, config.model)
    assert process.draw_kind == "uniform"
    drawn = process.draw_timesteps([0.0, 0.5, 0.9999999999], [1], [1], [1])
    assert drawn.tolist() == [0, 500, 999] and drawn.dtype == np.float32
    assert iddpm_options(config.diffusion, config.model).precision == "float32"
    assert iddpm_options(config.diffusion, ModelConfig(type="STDiT")).precision == "float64"
    options = iddpm_options(config.diffusion, ModelConfig(pred_sigma=False), 10, guided_channels=3)
    assert (options.learn_sigma, len(options.kept()), options.guided_channels) == (False, 10, 3)

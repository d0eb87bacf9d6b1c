"""AdamW, clipping, schedules, moving average, against the formulas in double precision."""

from __future__ import annotations

from itertools import pairwise

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from models.config import OptimizerConfig
from models.exits import PayloadError
from models.optim import EMA, AdamW, clip, global_norm, learning_rate
from models.rng import stream

pytestmark = pytest.mark.train

SHAPES = {"layer.weight": (7, 5), "layer.bias": (7,)}


def parameters() -> list[Parameter]:
    generator = stream(0, "parameters")
    values = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    return [Parameter(Tensor(value), name=name) for name, value in values.items()]


def gradients(step: int) -> tuple[Tensor, ...]:
    generator = stream(0, "gradients", step)
    return tuple(Tensor((generator.standard_normal(shape) * 0.01).astype(np.float32)) for shape in SHAPES.values())


def reference(config: OptimizerConfig, steps: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """torch.optim.AdamW's formula in float64: parameters and second moments."""
    values = [param.asnumpy().astype(np.float64) for param in parameters()]
    first, second = [np.zeros_like(v) for v in values], [np.zeros_like(v) for v in values]
    beta1, beta2 = config.betas
    for step in range(1, steps + 1):
        for index, grad in enumerate(gradients(step)):
            g = grad.asnumpy().astype(np.float64)
            first[index] = beta1 * first[index] + (1 - beta1) * g
            second[index] = beta2 * second[index] + (1 - beta2) * g * g
            values[index] *= 1 - config.lr * config.weight_decay
            denominator = np.sqrt(second[index]) / np.sqrt(1 - beta2**step) + config.eps
            values[index] -= config.lr / (1 - beta1**step) * first[index] / denominator
    return values, second


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("options", [{"eps": 1e-15}, {"weight_decay": 0.1, "eps": 1e-2}])
def test_adamw_is_torchs(compiled: bool, options: dict[str, float]) -> None:
    config = OptimizerConfig(lr=1e-2, **options)
    params = parameters()
    optimizer = AdamW(params, config)

    def update(hyper: Tensor, *grads: Tensor) -> Tensor:
        optimizer(grads, hyper)
        return hyper

    run = ms.jit(update) if compiled else update
    for step in range(1, 6):
        run(optimizer.advance(config.lr), *gradients(step))
    values, second = reference(config, 5)
    for param, expected in zip(params, values, strict=True):
        np.testing.assert_allclose(param.asnumpy(), expected, rtol=3e-7, atol=3e-7)
    state = optimizer.state_dict()
    for name, expected in zip(SHAPES, second, strict=True):  # 1 - 0.999 in float32 would be 1.3e-5 off
        np.testing.assert_allclose(state[f"exp_avg_sq.{name}"], expected, rtol=1e-6)


def test_optimizer_resumes_bit_for_bit() -> None:
    config = OptimizerConfig(lr=1e-2, weight_decay=0.01)
    straight = parameters()
    optimizer = AdamW(straight, config)
    for step in range(1, 7):
        optimizer.step(gradients(step), config.lr)
    first = parameters()
    before = AdamW(first, config)
    for step in range(1, 4):
        before.step(gradients(step), config.lr)
    state = before.state_dict()
    assert set(state) == {f"{kind}.{name}" for kind in ("exp_avg", "exp_avg_sq") for name in SHAPES} | {"step"}
    assert state["step"] == 3
    second = [Parameter(Tensor(param.asnumpy()), name=param.name) for param in first]
    after = AdamW(second, config)
    after.load_state_dict(state)
    for step in range(4, 7):
        after.step(gradients(step), config.lr)
    for param, expected in zip(second, straight, strict=True):
        np.testing.assert_array_equal(param.asnumpy(), expected.asnumpy())
    for name, value in optimizer.state_dict().items():
        np.testing.assert_array_equal(after.state_dict()[name], value)


def test_state_that_does_not_fit_is_named() -> None:
    optimizer = AdamW(parameters(), OptimizerConfig())
    state = optimizer.state_dict()
    del state["exp_avg.layer.bias"]
    state["exp_avg_sq.layer.weight"] = np.zeros((2, 2), np.float32)
    with pytest.raises(PayloadError) as caught:
        optimizer.load_state_dict(state)
    assert "exp_avg.layer.bias" in caught.value.why
    assert "exp_avg_sq.layer.weight" in caught.value.why


def test_norm_and_clip() -> None:
    grads = (Tensor(np.array([3.0, 0.0], np.float32)), Tensor(np.array([[4.0]], np.float32)))
    norm = global_norm(grads)
    assert float(norm.asnumpy()) == pytest.approx(5.0)
    clipped = clip(grads, norm, 1.0)
    np.testing.assert_allclose(clipped[0].asnumpy(), [3.0 / (5.0 + 1e-6), 0.0], rtol=1e-6)
    untouched = clip(grads, norm, 10.0)
    np.testing.assert_array_equal(untouched[1].asnumpy(), grads[1].asnumpy())


def test_learning_rate() -> None:
    constant = OptimizerConfig(lr=0.8, warmup_steps=3)
    assert [learning_rate(constant, step, 100) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])
    cosine = OptimizerConfig(lr=1.0, schedule="cosine", warmup_steps=2, end_lr=0.1)
    values = [learning_rate(cosine, step, 13) for step in range(13)]
    assert values[2] == 1.0
    assert values[12] == pytest.approx(0.1)
    assert values[7] == pytest.approx(0.55)
    assert all(a > b for a, b in pairwise(values[2:]))
    assert learning_rate(OptimizerConfig(lr=1.0, schedule="cosine", decay_steps=5), 50, 100) == 0.0
    assert learning_rate(OptimizerConfig(lr=1.0, schedule="cosine"), 0, 1) == 1.0


@pytest.mark.parametrize("compiled", [False, True])
def test_moving_average(compiled: bool) -> None:
    params = parameters()
    ema = EMA(params, decay=0.9999)
    start = ema.state_dict()
    for param, value in zip(params, start.values(), strict=True):
        np.testing.assert_array_equal(param.asnumpy(), value)
        param.set_data(param + 1000.0)

    def update() -> Tensor:
        ema()
        return ms.ops.zeros((1,), ms.float32)

    run = ms.jit(update) if compiled else update
    run()
    for name, value in ema.state_dict().items():
        np.testing.assert_allclose(value - start[name], 0.1, atol=2e-6)  # 1 - 0.9999 in float32 would give 0.10002


def test_moving_average_round_trip() -> None:
    params = parameters()
    ema, other = EMA(params, 0.5), EMA(params, 0.5)
    params[0].set_data(params[0] * 2)
    ema.update()
    other.load_state_dict(ema.state_dict())
    for name, value in ema.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name], value)
    with pytest.raises(PayloadError):
        other.load_state_dict({"layer.bias": np.zeros(7, np.float32)})

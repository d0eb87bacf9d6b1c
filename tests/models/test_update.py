"""Precision, loss scaling, offload, recomputation, accumulation: one process, a world of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from models import ops
from models.config import LossScaleConfig
from models.data.batch import MicroBatch
from models.loss_scale import LossScale
from models.ops import common
from models.parallel.mesh import Mesh
from models.parallel.world import World
from models.step import StepResult, TrainStep
from tests.layouts.cases import SIZE, TEXT, Case, config, micro_batches

pytestmark = pytest.mark.train

LR = 1e-3
# Far beyond what float16 holds (65504), whatever the gradients are.
TOO_LARGE = 2.0**40
SCALED = {"initial": 1024.0}
MODEL = {
    "in_channels": SIZE[0], "hidden_size": 32, "depth": 1, "num_heads": 4, "patch_size": [1, 2, 2],
    "caption_channels": TEXT[1], "model_max_length": TEXT[0], "class_dropout_prob": 0.2,
}  # fmt: skip


def prepared(dtype: str = "fp32", case: Case | None = None, **changes: Any) -> TrainStep:
    """A small model that stands ready; ``changes``: sections of its configuration."""
    settings = config(case or Case(), model=MODEL, **changes)
    step = TrainStep(settings, Mesh(World(), settings.layout), fixed_shape=True, dtype=dtype)
    step.prepare()
    return step


def samples(number: int = 0, accumulation: int = 1) -> list[MicroBatch]:
    """Three samples of a step, all of which count."""
    return [_small(batch) for batch in micro_batches(number, 0, 4, accumulation)]


def _small(batch: MicroBatch) -> MicroBatch:
    """Half precision is slow on CPU: 3 frames of 5 x 6, the last row of patches padded."""
    assert batch.x_mask is not None
    frames = batch.x_mask[:, :3].copy()
    frames[:, 0] = True
    cut = {"x": batch.x[:, :, :3, :5, :6], "noise": batch.noise[:, :, :3, :5, :6], "x_mask": frames}
    whole = {name: np.ascontiguousarray(values) for name, values in cut.items()}
    return replace(batch, weights=np.ones_like(batch.weights), **whole)


def state(step: TrainStep) -> dict[tuple[str, str], np.ndarray]:
    """Everything a checkpoint holds: masters, averages, moments. A world of one holds all of it."""
    return {(piece.kind, piece.name): piece.values().copy() for piece in step.pieces()}


def weights(step: TrainStep) -> dict[str, np.ndarray]:
    """What the model computes with, in its own dtype."""
    return {name: param.asnumpy().copy() for name, param in step.weights.params.items()}


def assert_same(one: dict[Any, np.ndarray], other: dict[Any, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    different = [key for key in one if not np.array_equal(one[key], other[key])]
    assert not different, different[:5]


@dataclass(frozen=True)
class Seen:
    """Losses, norms, gradients of every step (flat, one a parameter), the state at the end."""

    results: list[StepResult]
    gradients: list[list[np.ndarray]]
    state: dict[tuple[str, str], np.ndarray]


def watched(step: TrainStep, batches: Sequence[list[MicroBatch]]) -> Seen:
    """Trains and keeps the gradients before each update."""
    found: list[list[np.ndarray]] = []
    apply = step.update.apply

    def keeping(factor: float, lr: float) -> None:
        found.append([g.asnumpy().copy() for unit in step.update._gradients for g in unit])
        apply(factor, lr)

    step.update.apply = keeping  # type: ignore[method-assign]
    results = [step.run(batch, LR) for batch in batches]
    assert all(result.applied for result in results)
    return Seen(results, found, state(step))


def numbers(seen: Seen) -> list[tuple[float, float]]:
    return [(result.loss, result.grad_norm) for result in seen.results]


def test_float16_keeps_what_its_own_spacing_would_lose() -> None:
    optimizer = {"lr": 2e-5, "eps": 1e-12, "weight_decay": 0.0, "max_grad_norm": None}
    step = prepared("fp16", optimizer=optimizer)
    before = state(step)
    steps, lr = 8, 2e-5
    for _ in range(steps):
        for number, unit in enumerate(step.weights.units):
            step.update.reduce(number, Tensor(np.ones(unit.padded, np.float32)))
        step.update.apply(1.0, lr)
    after, rounded = state(step), weights(step)
    coarse = 0
    for name, values in rounded.items():
        old, new = before["model", name], after["model", name]
        # Adam's step with one and the same gradient is lr. Masters are float32: their own spacing is below 5e-7 here.
        np.testing.assert_allclose(old - new, steps * lr, atol=steps * 2.5e-7)
        assert values.dtype == np.float16
        np.testing.assert_array_equal(values.reshape(-1), new.astype(np.float16))
        alone = old.astype(np.float16)
        coarse += int(np.sum((alone - np.float16(lr) == alone) & (values.reshape(-1) != alone)))
    # A good part of the weights would never have moved without masters, and did.
    assert coarse > 1000


def test_float16_trains_like_float32() -> None:
    batches = [samples(number) for number in range(3)]
    half = watched(prepared("fp16", loss_scale=SCALED), batches)
    full = watched(prepared(), batches)
    for (loss, norm), (expected_loss, expected_norm) in zip(numbers(half), numbers(full), strict=True):
        assert loss == pytest.approx(expected_loss, rel=5e-3)
        assert norm == pytest.approx(expected_norm, rel=2e-2)
        assert loss != expected_loss, "nothing was computed in float16"
    moved = [(key, values) for key, values in full.state.items() if key[0] == "model"]
    far = max(float(np.abs(half.state[key] - values).max()) for key, values in moved)
    assert far < 4 * LR, "masters went another way"


def test_a_scale_of_the_loss_cancels_out() -> None:
    one, other = (
        watched(prepared("fp16", loss_scale={"initial": initial}), [samples()]) for initial in (512.0, 4096.0)
    )
    (loss, norm), (other_loss, other_norm) = *numbers(one), *numbers(other)
    assert loss == pytest.approx(other_loss, rel=1e-6)
    assert norm == pytest.approx(other_norm, rel=2e-3)


@pytest.mark.parametrize(("kind", "left"), [("dynamic", TOO_LARGE / 4), ("static", TOO_LARGE)])
def test_overflow_skips_the_step(kind: str, left: float) -> None:
    step = prepared("fp16", loss_scale={"type": kind, "initial": TOO_LARGE})
    before, computed = state(step), weights(step)
    for _ in range(2):
        result = step.run(samples(), LR)
        assert not result.applied
        assert not np.isfinite(result.grad_norm)
        assert np.isfinite(result.loss)
    assert step.scale.value == left
    assert step.update.count == 0
    assert_same(state(step), before)
    assert_same(weights(step), computed)
    # Nothing of the infinite gradients stays behind: with a scale that fits, it is the first step.
    step.scale.value = SCALED["initial"]
    clean = prepared("fp16", loss_scale={"type": kind, **SCALED})
    found, expected = watched(step, [samples()]), watched(clean, [samples()])
    assert numbers(found) == numbers(expected)
    assert_same(found.state, expected.state)


def test_the_scale_grows_after_a_row_of_good_steps() -> None:
    scale = LossScale(LossScaleConfig(initial=8.0, factor=4.0, window=3), "fp16")
    values = []
    for finite in (True, True, False, True, True, True, True, True, True, False):
        scale.update(finite)
        values.append(scale.value)
    assert values == [8, 8, 2, 2, 2, 8, 8, 8, 32, 8]
    for _ in range(10):
        scale.update(False)
    assert scale.value == 1.0


def test_the_scale_is_saved_and_restored() -> None:
    settings = LossScaleConfig(initial=8.0, window=3)
    scale, other = LossScale(settings, "fp16"), LossScale(settings, "fp16")
    for finite in (False, True, True):
        scale.update(finite)
    other.restore(scale.state())
    assert (other.value, other.good_steps) == (4.0, 2)
    for one in (scale, other):
        one.update(True)
    assert scale.state() == other.state() == {"value": 8.0, "good_steps": 0}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_only_float16_is_scaled(dtype: str) -> None:
    scale = LossScale(LossScaleConfig(), dtype)
    scale.restore({"value": 64.0, "good_steps": 1})
    scale.update(False)
    assert scale.value == 1.0


def test_a_static_scale_stays() -> None:
    scale = LossScale(LossScaleConfig(type="static", initial=128.0, window=1), "fp16")
    for finite in (True, False, True):
        scale.update(finite)
    assert scale.value == 128.0


@pytest.mark.parametrize("offload", [False, True])
def test_float16_goes_on_where_it_was_saved(offload: bool) -> None:
    """Masters, not rounded weights, come back: the next step is the same to the last bit."""
    options = {"loss_scale": {**SCALED, "window": 2}, "optimizer": {"lr": LR, "offload": offload}}
    step = prepared("fp16", **options)
    for number in range(2):
        step.run(samples(number), LR)
    assert step.scale.value == 2 * SCALED["initial"]
    saved, scale, count = state(step), step.scale.state(), step.update.count
    other = prepared("fp16", seed=8, **options)

    def read(wanted: list[tuple[str, str, int, int]]) -> Iterator[np.ndarray]:
        return (saved[kind, name][start:stop] for kind, name, start, stop in wanted)

    other.load(read, {kind for kind, _ in saved}, count)
    other.scale.restore(scale)
    assert_same(weights(other), weights(step))
    found, expected = watched(other, [samples(2)]), watched(step, [samples(2)])
    assert numbers(found) == numbers(expected)
    assert_same(found.state, expected.state)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_offload_is_the_devices_update(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit the formula of Ascend's update. The CPU's kernel rounds elsewhere; see the next test."""
    monkeypatch.setattr(ops, "adamw_update", common.adamw_update)
    batches = [samples(number) for number in range(2)]
    options = {"lr": LR, "weight_decay": 0.01, "eps": 1e-8, "max_grad_norm": 0.5}
    runs = [
        watched(prepared(dtype, loss_scale=SCALED, optimizer={**options, "offload": offload}), batches)
        for offload in (False, True)
    ]
    assert numbers(runs[0]) == numbers(runs[1])
    assert_same(runs[0].state, runs[1].state)
    assert {kind for kind, _ in runs[0].state} == {"model", "ema", "exp_avg", "exp_avg_sq"}


def test_offload_is_close_to_the_cpus_kernel() -> None:
    batches = [samples(number) for number in range(2)]
    options = {"lr": LR, "weight_decay": 0.01, "eps": 1e-5, "max_grad_norm": 0.5}
    device, host = (watched(prepared(optimizer={**options, "offload": offload}), batches) for offload in (False, True))
    np.testing.assert_allclose(numbers(host), numbers(device), rtol=2e-6)
    for key, values in device.state.items():
        scale = float(np.abs(values).max())
        # Its first moment carries a factor of 1 + 6.6e-6, which its step takes out (models/ops/cpu.py).
        np.testing.assert_allclose(host.state[key], values, rtol=0, atol=2e-5 * scale, err_msg=str(key))


def test_recomputed_blocks_give_the_same_gradients() -> None:
    plain, every, second = (
        watched(prepared(case=Case(recompute=blocks)), [samples(0), samples(1)]) for blocks in (0, 1, 2)
    )
    assert plain.gradients[0]
    for other in (every, second):
        assert numbers(other) == numbers(plain)
        for mine, its in zip(plain.gradients, other.gradients, strict=True):
            assert all(np.array_equal(one, two) for one, two in zip(mine, its, strict=True))
        assert_same(other.state, plain.state)


def test_three_micro_steps_equal_one() -> None:
    whole = watched(prepared(), [samples(number) for number in range(2)])
    parts = [samples(number, 3) for number in range(2)]
    assert [len(batches) for batches in parts] == [3, 3]
    split = watched(prepared(case=Case(accumulation=3)), parts)
    np.testing.assert_allclose(numbers(split), numbers(whole), rtol=2e-6)
    for one, other in zip(split.gradients[0], whole.gradients[0], strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * float(np.abs(other).max()) + 1e-12)


def test_a_dropped_sample_leaves_no_trace() -> None:
    """Its weight is 0: whatever its pixels are, the step is the one without it."""
    (batch,) = samples()
    kept = np.array([1, 0, 1], np.float32)
    changed = batch.x.copy()
    changed[1] = 3 - 2 * changed[1]
    one, other = (watched(prepared(), [[replace(batch, weights=kept, x=x)]]) for x in (batch.x, changed))
    assert one.results[0].weight == 2
    assert numbers(one) == numbers(other)
    assert_same(one.state, other.state)
    without = watched(prepared(), [[rows(batch, [0, 2])]])
    np.testing.assert_allclose(numbers(one), numbers(without), rtol=2e-6)


def rows(batch: MicroBatch, places: list[int]) -> MicroBatch:
    """Some samples of a micro batch."""
    values = {name: value for name, value in vars(batch).items() if isinstance(value, np.ndarray)}
    return replace(batch, **{name: value[places] for name, value in values.items()})


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_step_without_any_sample_changes_nothing(dtype: str) -> None:
    step = prepared(dtype, loss_scale={**SCALED, "window": 1})
    before, computed = state(step), weights(step)
    result = step.run([replace(batch, weights=np.zeros_like(batch.weights)) for batch in samples(0, 3)], LR)
    assert not result.applied
    assert result.weight == 0
    assert np.isnan(result.loss)
    assert step.update.count == 0
    assert step.scale.value == (SCALED["initial"] if dtype == "fp16" else 1.0)
    assert_same(state(step), before)
    assert_same(weights(step), computed)
    # The next step is as if there had been none before.
    found = watched(step, [samples()])
    expected = watched(prepared(dtype, loss_scale={**SCALED, "window": 1}), [samples()])
    assert numbers(found) == numbers(expected)
    assert_same(found.state, expected.state)


def test_masters_are_there_only_where_needed() -> None:
    step = prepared()
    step.run(samples(), LR)
    held = {param.name: param for param in step.update.params}
    assert all(held[name] is param for name, param in step.weights.params.items())
    half = prepared("fp16", loss_scale=SCALED)
    assert all(param.dtype == ms.float32 for param in half.update.params)
    assert all(param.dtype == ms.float16 for param in half.weights.params.values())

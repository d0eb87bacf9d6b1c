"""Hand-written gradients of the CPU operators against plain compositions and automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn
from mindspore import ops as P

from models.ops import common, cpu
from models.ops.cpu_cells import group_count
from models.rng import stream

pytestmark = pytest.mark.train

Function = Callable[..., Tensor]


def tensor(name: str, *shape: int) -> Tensor:
    return Tensor(stream(0, name).standard_normal(shape).astype(np.float32))


def plain_norm_modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    centred = x - x.mean(-1, keep_dims=True)
    normed = centred / P.sqrt((centred * centred).mean(-1, keep_dims=True) + 1e-6)
    return normed * (1 + scale) + shift


def plain_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / P.sqrt((x * x).mean(-1, keep_dims=True) + 1e-6) * weight


def plain_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    scores = P.matmul(q, k.transpose(0, 1, 3, 2)) * 0.5
    weights = P.exp((scores if bias is None else scores + bias).astype(ms.float64))
    return P.matmul((weights / weights.sum(-1, keepdims=True)).astype(q.dtype), v)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    return cpu.attention(q, k, v, bias, 0.5)


def plain_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return P.matmul(x, weight.transpose(1, 0)) + bias


X = tensor("x", 2, 3, 5, 8)
QUERIES = tensor("q", 2, 3, 4, 6)
KEYS, VALUES = tensor("k", 2, 3, 7, 6), tensor("v", 2, 3, 7, 6)
HIDE = Tensor(np.where(np.arange(7) < 5, 0.0, -1e30).astype(np.float32).reshape(1, 1, 1, 7))

# name: operator, the same composed plainly, arguments, how many of them have gradients
CASES: dict[str, tuple[Function, Function, tuple[Tensor, ...], int]] = {
    "linear": (cpu.linear, plain_linear, (X, tensor("w", 4, 8), tensor("b", 4)), 3),
    "rms_norm": (cpu.rms_norm, plain_rms_norm, (X, tensor("w", 8)), 2),
    "attention": (attention, plain_attention, (QUERIES, KEYS, VALUES), 3),
    "hidden tokens": (attention, plain_attention, (QUERIES, KEYS, VALUES, HIDE), 3),
    "hidden by sample": (attention, plain_attention, (QUERIES, KEYS, VALUES, P.concat((HIDE, HIDE * 0))), 3),
}
for what, shape in {"frame": (2, 3, 1, 8), "sample": (2, 1, 1, 8), "all": (1, 1, 1, 8), "odd": (1, 3, 1, 8)}.items():
    SHIFT, SCALE = tensor("shift", *shape), tensor("scale", *shape)
    CASES[f"norm_modulate by {what}"] = (cpu.norm_modulate, plain_norm_modulate, (X, SHIFT, SCALE), 3)
    CASES[f"gate_add by {what}"] = (cpu.gate_add, common.gate_add, (tensor("r", 2, 3, 5, 8), SCALE, X), 3)


def gradients(function: Function, arguments: tuple[Tensor, ...], count: int, compiled: bool) -> list[np.ndarray]:
    """Value and gradients of a weighted sum of the function's elements."""
    weights = tensor("weights", *function(*arguments).shape)

    def weighted(*values: Tensor) -> Tensor:
        return (function(*values) * weights).sum()

    run: Any = ms.value_and_grad(weighted, tuple(range(count)))
    value, grads = (ms.jit(run) if compiled else run)(*arguments)
    return [value.asnumpy(), *[grad.asnumpy() for grad in grads]]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_same_as_plain(case: str, compiled: bool) -> None:
    operator, plain, arguments, count = CASES[case]
    np.testing.assert_allclose(operator(*arguments).asnumpy(), plain(*arguments).asnumpy(), atol=4e-6)
    computed = gradients(operator, arguments, count, compiled)
    expected = gradients(plain, arguments, count, False)
    assert len(computed) == count + 1
    for mine, its in zip(computed, expected, strict=True):
        np.testing.assert_allclose(mine, its, atol=4e-6 * max(1.0, float(np.abs(its).max())))


class Again(nn.Cell):
    """Differentiates inside its own backward pass, as recomputation does."""

    def construct(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return cpu.gelu(cpu.norm_modulate(x, shift, scale))

    def bprop(self, x: Tensor, shift: Tensor, scale: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
        given = [P.stop_gradient(value) for value in (x, shift, scale)]
        inner: tuple[Tensor, ...] = ms.grad(lambda *args: (self.construct(*args) * dout).sum(), (0, 1, 2))(*given)
        return inner


def test_gradients_inside_a_backward_pass() -> None:
    arguments = (X, tensor("shift", 2, 3, 1, 8), tensor("scale", 2, 3, 1, 8))
    again = Again()
    nested = gradients(lambda *args: again(*args), arguments, 3, False)
    straight = gradients(lambda *args: again.construct(*args), arguments, 3, False)
    for mine, its in zip(nested, straight, strict=True):
        np.testing.assert_array_equal(mine, its)


def test_gradients_reach_parameters() -> None:
    weight, bias = Parameter(tensor("w", 4, 8), name="weight"), Parameter(tensor("b", 4), name="bias")
    grads = ms.grad(lambda x: cpu.linear(x, weight, bias).sum(), None, [weight, bias])(X)
    np.testing.assert_allclose(grads[0].asnumpy(), np.tile(X.asnumpy().sum((0, 1, 2)), (4, 1)), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(grads[1].asnumpy(), np.full(4, 30.0, np.float32))


@pytest.mark.parametrize(
    ("other", "groups"),
    [((2, 3, 1, 8), 6), ((2, 1, 1, 8), 2), ((1, 1, 1, 8), 1), ((2, 3, 5, 8), 30), ((1, 3, 1, 8), 0),
     ((2, 1, 5, 8), 0), ((8,), 0), ((2, 3, 1, 1), 0)],
)  # fmt: skip
def test_which_rows_belong_together(other: tuple[int, ...], groups: int) -> None:
    assert group_count((2, 3, 5, 8), other) == groups


def test_a_step_of_adamw_does_not_depend_on_how_parameters_are_cut() -> None:
    values = {name: stream(0, name).standard_normal(1003).astype(np.float32) for name in ("p", "m", "v", "g")}
    values["v"] = values["v"] ** 2 + 0.5
    hyper, constants = Tensor(np.array([0.99, 1e-2, 0.3], np.float32)), (1 - 0.9, 0.999, 1 - 0.999, 1e-8)

    def update(start: int, stop: int) -> list[np.ndarray]:
        state = [Parameter(Tensor(values[name][start:stop].copy()), name=name) for name in ("p", "m", "v")]
        cpu.adamw_update(*state, Tensor(values["g"][start:stop].copy()), hyper, constants)
        return [part.asnumpy() for part in state]

    whole = update(0, 1003)
    pieces = [update(start, stop) for start, stop in ((0, 3), (3, 20), (20, 700), (700, 1003))]
    for index in range(3):
        np.testing.assert_array_equal(whole[index], np.concatenate([piece[index] for piece in pieces]))
    expected = [Parameter(Tensor(values[name].copy()), name=name) for name in ("p", "m", "v")]
    common.adamw_update(*expected, Tensor(values["g"]), hyper, constants)
    # The kernel's exp_avg holds gradients enlarged by 6.4e-6 of themselves; the step does not.
    for mine, its, atol in zip(whole, expected, (3e-7, 3e-6, 3e-7), strict=True):
        np.testing.assert_allclose(mine, its.asnumpy(), rtol=1e-6, atol=atol)


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4, 5)])
def test_sum_of_squares(shape: tuple[int, ...]) -> None:
    x = tensor("x", *shape)
    expected = float((x.asnumpy().astype(np.float64) ** 2).sum())
    assert float(cpu.sum_of_squares(x).asnumpy()) == pytest.approx(expected, rel=1e-6)

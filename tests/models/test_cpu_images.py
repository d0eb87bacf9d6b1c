"""Convolutions, norms and enlargement on CPU against plain numpy loops and numerical slopes."""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
import numpy as np
import pytest
from mindspore import ParameterTuple, Tensor, nn

from models import ops
from models.layers.convolution import Conv2d, Conv3d, GroupNorm
from models.ops import cpu_images
from models.rng import stream

pytestmark = pytest.mark.train


def array(name: str, *shape: int) -> np.ndarray:
    return stream(0, name, *shape).standard_normal(shape).astype(np.float32)


def convolved(x: np.ndarray, weight: np.ndarray, stride: tuple[int, int, int], padding: tuple[int, ...]) -> np.ndarray:
    """The sum that a convolution is, place by place, in float64; x [N, C, T, H, W]."""
    around = [(0, 0), (0, 0), *zip(padding[::2], padding[1::2], strict=True)]
    x, weight = np.pad(x.astype(np.float64), around), weight.astype(np.float64)
    counts = [(x.shape[axis + 2] - weight.shape[axis + 2]) // stride[axis] + 1 for axis in range(3)]
    out = np.zeros((x.shape[0], weight.shape[0], *counts))
    whole = slice(None)
    for place in np.ndindex(*counts):
        window = tuple(slice(p * s, p * s + k) for p, s, k in zip(place, stride, weight.shape[2:], strict=True))
        out[(whole, whole, *place)] = np.einsum("ncijk,ocijk->no", x[(whole, whole, *window)], weight)
    return out


def slopes(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Gradient of sum(function(x) * weight) of a function that is linear in x."""
    result = np.zeros(x.shape)
    for place in np.ndindex(*x.shape):
        unit = np.zeros(x.shape)
        unit[place] = 1.0
        result[place] = (function(unit) * weight).sum()
    return result


CASES = {
    "3x3": ((1, 3, 3), (1, 1, 1), (0, 0, 1, 1, 1, 1), (1, 4, 5)),
    "halved": ((1, 3, 3), (1, 2, 2), (0, 0, 0, 1, 0, 1), (1, 4, 6)),
    "halved, odd": ((1, 3, 3), (1, 2, 2), (0, 0, 0, 1, 0, 1), (1, 5, 7)),
    "4x4": ((1, 4, 4), (1, 2, 2), (0, 0, 1, 1, 1, 1), (1, 6, 5)),
    "pointwise": ((1, 1, 1), (1, 1, 1), (0, 0, 0, 0, 0, 0), (2, 3, 4)),
    "pointwise, halved": ((1, 1, 1), (1, 2, 2), (0, 0, 0, 0, 0, 0), (1, 4, 5)),
    "causal": ((3, 3, 3), (1, 1, 1), (2, 0, 1, 1, 1, 1), (4, 3, 4)),
    "causal, halved": ((3, 3, 3), (2, 1, 1), (1, 0, 1, 1, 1, 1), (4, 2, 3)),
    "one frame": ((3, 3, 3), (1, 1, 1), (2, 0, 1, 1, 1, 1), (1, 2, 2)),
    "larger than the image": ((3, 5, 5), (1, 1, 1), (1, 1, 2, 2, 2, 2), (2, 2, 3)),
    "no padding": ((2, 3, 2), (1, 1, 1), (0, 0, 0, 0, 0, 0), (3, 4, 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_convolutions(name: str) -> None:
    kernel, stride, padding, sizes = CASES[name]
    x, weight, bias = array("x", 2, 3, *sizes), array("w", 4, 3, *kernel), array("b", 4)
    expected = convolved(x, weight, stride, padding)
    upstream = array("dout", *expected.shape)
    cell = cpu_images.conv3d(4, kernel, stride, padding)

    def loss(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        out = cell(x, weight, bias)
        return (out * Tensor(upstream)).sum(), out

    differentiate = ms.value_and_grad(loss, (0, 1, 2), has_aux=True)
    (_, out), (dx, dweight, dbias) = differentiate(Tensor(x), Tensor(weight), Tensor(bias))
    np.testing.assert_allclose(out.asnumpy(), expected + bias.reshape(1, 4, 1, 1, 1), atol=2e-5)
    dx_expected = slopes(lambda unit: convolved(unit, weight, stride, padding), x, upstream)
    dw_expected = slopes(lambda unit: convolved(x, unit, stride, padding), weight, upstream)
    np.testing.assert_allclose(dx.asnumpy(), dx_expected, atol=2e-5)
    np.testing.assert_allclose(dweight.asnumpy(), dw_expected, atol=5e-5)
    np.testing.assert_allclose(dbias.asnumpy(), upstream.sum((0, 2, 3, 4)), atol=2e-5)


def test_images_are_clips_of_one_frame() -> None:
    x, weight = Tensor(array("x", 2, 3, 6, 5)), Tensor(array("w", 4, 3, 3, 3))
    flat = cpu_images.conv2d(4, (3, 3), (2, 2), (0, 1, 0, 1))(x, weight, None).asnumpy()
    deep = cpu_images.conv3d(4, (1, 3, 3), (1, 2, 2), (0, 0, 0, 1, 0, 1))(x.expand_dims(2), weight.expand_dims(2), None)
    assert np.array_equal(flat, deep.asnumpy()[:, :, 0])


def normalised(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, groups: int, eps: float, silu: bool) -> np.ndarray:
    rows = x.astype(np.float64).reshape(x.shape[0], groups, -1)
    rows = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + eps)
    by_channel = (1, -1, *[1] * (x.ndim - 2))
    out: np.ndarray = rows.reshape(x.shape) * weight.reshape(by_channel) + bias.reshape(by_channel)
    return out / (1 + np.exp(-out)) if silu else out


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(("shape", "groups"), [((2, 6, 3, 4), 3), ((1, 4, 2, 3, 2), 4), ((3, 4, 5), 1)])
def test_group_norm(shape: tuple[int, ...], groups: int, silu: bool) -> None:
    x, weight, bias = array("x", *shape) * 2 + 3, array("w", shape[1]), array("b", shape[1])
    upstream = array("dout", *shape)
    cell = cpu_images.group_norm(groups, 1e-5, silu)

    def loss(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        out = cell(x, weight, bias)
        return (out * Tensor(upstream)).sum(), out

    given = (x, weight, bias)
    (_, out), found = ms.value_and_grad(loss, (0, 1, 2), has_aux=True)(*map(Tensor, given))
    np.testing.assert_allclose(out.asnumpy(), normalised(*given, groups, 1e-5, silu), atol=5e-6)
    for number, gradient in enumerate(found):
        for place in [tuple(0 for _ in gradient.shape), tuple(size - 1 for size in gradient.shape)]:
            moved = [[array.astype(np.float64).copy() for array in given] for _ in range(2)]
            moved[0][number][place] += 1e-5
            moved[1][number][place] -= 1e-5
            up, down = ((normalised(*arrays, groups, 1e-5, silu) * upstream).sum() for arrays in moved)
            assert gradient.asnumpy()[place] == pytest.approx((up - down) / 2e-5, rel=2e-4, abs=2e-5)


def test_enlargement() -> None:
    x, upstream = array("x", 2, 3, 2, 5), array("dout", 2, 3, 4, 10)
    loss = ms.value_and_grad(lambda x: (ops.upsample_nearest(x) * Tensor(upstream)).sum(), 0)
    assert np.array_equal(ops.upsample_nearest(Tensor(x)).asnumpy(), x.repeat(2, 2).repeat(2, 3))
    _, gradient = loss(Tensor(x))
    np.testing.assert_allclose(gradient.asnumpy(), upstream.reshape(2, 3, 2, 2, 5, 2).sum((3, 5)), atol=1e-6)


class _Layers(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.first = Conv2d(3, 4, 3, stride=2, padding=(0, 1, 0, 1))
        self.norm = GroupNorm(2, 4, activation="silu")
        self.second = Conv3d(4, 2, (3, 3, 3), (2, 1, 1), (1, 0, 1, 1, 1, 1))
        self.last = GroupNorm(1, 2, activation="relu")
        self.upsample = ops.upsample_nearest

    def construct(self, x: Tensor) -> Tensor:
        x = self.upsample(self.norm(self.first(x)))
        n, c, h, w = x.shape
        out = self.last(self.second(x.reshape(1, n, c, h, w).transpose(0, 2, 1, 3, 4)))
        return (out * out).sum()


def test_compiled_layers_are_the_eager_ones() -> None:
    layers, x = _Layers(), Tensor(array("x", 4, 3, 6, 4))
    for name, param in layers.parameters_and_names():
        param.set_data(Tensor(array(name, *param.shape)))
    gradients = ms.value_and_grad(layers, 0, ParameterTuple(list(layers.trainable_params())))
    (eager, (dx, dweights)), (compiled, (dx2, dweights2)) = gradients(x), ms.jit(gradients)(x)
    assert eager.asnumpy() == pytest.approx(compiled.asnumpy(), rel=1e-6)
    for one, other in zip((dx, *dweights), (dx2, *dweights2), strict=True):
        np.testing.assert_allclose(one.asnumpy(), other.asnumpy(), atol=1e-5, rtol=1e-5)
    assert [name for name, _ in layers.parameters_and_names()] == [
        "first.weight", "first.bias", "norm.weight", "norm.bias", "second.weight", "second.bias",
        "last.weight", "last.bias",
    ]  # fmt: skip

"""Operators on images and clips for the CPU, whose own convolutions take hundreds of times as long as they should.

Measured on MindSpore 2.10: a convolution of 0.64 GFLOP takes 1.5 s, a product of that size 12 ms; copies of strided
views 20 ms for 9 MB, ``Gather`` and ``Concat`` of whole rows 0.4 ms. So a convolution is one product with *columns*:
a product with a matrix of zeros and ones moves every row sideways, once for each column of the kernel, and one Gather
of whole rows puts them where the product wants them. Zeros around the image are a row of zeros that is gathered.
Gradients by hand: that of x is a product with columns of the output's gradient, made with the same two tables turned
round; and the weights' is one with the same columns.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as P
from mindspore.ops import constexpr

from models.ops.common import Padding2d, Padding3d

_matmul = P.MatMul()
_bmm = P.BatchMatMul()
_bmm_tb = P.BatchMatMul(transpose_b=True)
_gather = P.Gather()
_rsqrt = P.Rsqrt()
_sigmoid = P.Sigmoid()
_tile = P.Tile()


class Window(NamedTuple):
    """A convolution's kernel, stride and padding before; by frames, rows and columns."""

    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]
    before: tuple[int, int, int]


def _taps(length: int, outputs: int, axis: int, window: Window) -> np.ndarray:
    """int [kernel, outputs]: which input each tap of each output sees along an axis; ``length`` for zeros."""
    kernel, stride, before = window.kernel[axis], window.stride[axis], window.before[axis]
    seen = np.arange(outputs) * stride + np.arange(kernel)[:, None] - before
    return np.where((seen >= 0) & (seen < length), seen, length)


def _taps_back(length: int, outputs: int, axis: int, window: Window) -> np.ndarray:
    """int [kernel, length]: which output each input goes to by each tap; ``outputs`` for none."""
    kernel, stride, before = window.kernel[axis], window.stride[axis], window.before[axis]
    reached = np.arange(length) + before - np.arange(kernel)[:, None]
    place = reached // stride
    return np.where((reached % stride == 0) & (place >= 0) & (place < outputs), place, outputs)


@functools.lru_cache(maxsize=256)
def _tables(
    sizes: tuple[int, ...], outputs: tuple[int, ...], window: Window, channels: int, back: bool
) -> tuple[Tensor, Tensor]:
    """What columns of an input of ``sizes`` (of the gradient of ``outputs``, if ``back``) are made with.

    moves: float32 [row, kernel columns * row of the columns], zeros and ones. rows: int32, for every channel, tap,
    frame and row of the columns its row among those moved: (channel, frame, row) in order and one of zeros behind,
    each once for every kernel column.
    """
    seen = [(_taps_back if back else _taps)(sizes[axis], outputs[axis], axis, window) for axis in range(3)]
    given = outputs if back else sizes
    wide, width = window.kernel[2], seen[2].shape[1]
    moves = np.zeros((given[2] + 1, wide, width), np.float32)
    moves[seen[2], np.arange(wide)[:, None], np.arange(width)] = 1.0
    frames = seen[0].reshape(1, window.kernel[0], 1, 1, -1, 1)
    lines = seen[1].reshape(1, 1, window.kernel[1], 1, 1, -1)
    channel = np.arange(channels).reshape(-1, 1, 1, 1, 1, 1)
    inside = (frames < given[0]) & (lines < given[1])
    place = np.where(inside, (channel * given[0] + frames) * given[1] + lines, channels * given[0] * given[1])
    place = place * wide + np.arange(wide).reshape(1, 1, 1, -1, 1, 1)
    return Tensor(moves[:-1].reshape(given[2], -1)), Tensor(place.reshape(-1).astype(np.int32))


@constexpr
def _constants(
    sizes: tuple[int, ...], outputs: tuple[int, ...], window: Window, channels: int, back: bool
) -> tuple[Tensor, Tensor]:
    """:func:`_tables`, also in a compiled function."""
    return _tables(tuple(sizes), tuple(outputs), Window(*window), channels, back)


@constexpr
def _doubling(width: int) -> Tensor:
    """float32 [width, 4 width]: a row, every pixel twice, and all that twice."""
    return Tensor(np.tile(np.repeat(np.eye(width, dtype=np.float32), 2, axis=1), (1, 2)))


class Convolution(nn.Cell):
    """x [N, C, T, H, W], weight [O, C, kt, kh, kw] -> [N, O, T', H', W']. Images are clips of one frame."""

    def __init__(self, window: Window, after: tuple[int, int, int]) -> None:
        super().__init__()
        self.window, self.around = tuple(window), tuple(a + b for a, b in zip(window.before, after, strict=True))
        self.taps = window.kernel[0] * window.kernel[1] * window.kernel[2]
        self.pointwise = self.taps == 1 and window.stride == (1, 1, 1) and not any(self.around)

    def _outputs(self, sizes: tuple[int, ...]) -> tuple[int, int, int]:
        kernel, stride, around = self.window[0], self.window[1], self.around
        return (
            (sizes[0] + around[0] - kernel[0]) // stride[0] + 1,
            (sizes[1] + around[1] - kernel[1]) // stride[1] + 1,
            (sizes[2] + around[2] - kernel[2]) // stride[2] + 1,
        )

    def _columns(self, x: Tensor, sizes: tuple[int, ...], outputs: tuple[int, ...], back: bool) -> Tensor:
        """x [N, C, T, H, W] -> [N, C * taps, pixels]; x is the gradient of the outputs, if ``back``."""
        n, c, t, h, w = x.shape
        if self.pointwise:
            return x.reshape(n, c, -1)
        moves, rows = _constants(sizes, outputs, self.window, c, back)
        lines = P.concat((x.reshape(n, c * t * h, w), P.zeros((n, 1, w), x.dtype)), 1)
        width = moves.shape[1] // self.window[0][2]
        moved = _matmul(lines.reshape(-1, w), moves.astype(x.dtype)).reshape(n, -1, width)
        return _gather(moved, rows, 1).reshape(n, c * self.taps, -1)

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        n, channels = x.shape[0], weight.shape[0]
        outputs = self._outputs(x.shape[2:])
        found = self._columns(x, x.shape[2:], outputs, False)
        return _product(weight.reshape(channels, -1), found).reshape((n, channels) + outputs)

    def bprop(self, x: Tensor, weight: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        n, c = x.shape[:2]
        channels = weight.shape[0]
        # One set of columns serves both: what each input meets, pixel by pixel.
        met = self._columns(dout, x.shape[2:], dout.shape[2:], True)
        turned = weight.reshape(channels, c, self.taps).transpose(1, 0, 2).reshape(c, channels * self.taps)
        dx = _product(turned, met).reshape(x.shape)
        parts = _bmm_tb(met, x.reshape(n, c, -1)).reshape(n, -1)
        dweight = _matmul(P.ones((1, n), x.dtype), parts).reshape(channels, self.taps, c)
        return dx, dweight.transpose(0, 2, 1).reshape(weight.shape)


def _product(matrix: Tensor, samples: Tensor) -> Tensor:
    """matrix [A, B] @ samples [N, B, C] -> [N, A, C]"""
    n = samples.shape[0]
    return _bmm(_tile(matrix.reshape((1,) + matrix.shape), (n, 1, 1)), samples)


class AddChannels(nn.Cell):
    """x [N, C, ...] + bias [C]."""

    def __init__(self) -> None:
        super().__init__()
        self._bias_add = P.BiasAdd()

    def construct(self, x: Tensor, bias: Tensor) -> Tensor:
        n, c = x.shape[:2]
        return self._bias_add(x.reshape(n, c, 1, -1), bias).reshape(x.shape)

    def bprop(self, x: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        n, c = x.shape[:2]
        sums = row_sums(dout.reshape(n * c, -1)).reshape(n, c)
        return dout, _matmul(P.ones((1, n), x.dtype), sums).reshape(c)


def row_sums(x: Tensor) -> Tensor:
    """[A, B] -> [A, 1]"""
    return _matmul(x, P.ones((x.shape[1], 1), x.dtype))


def spread(x: Tensor, count: int) -> Tensor:
    """[A, 1] -> [A, count]"""
    return _matmul(x, P.ones((1, count), x.dtype))


class _Biased(nn.Cell):
    def __init__(self, window: Window, after: tuple[int, int, int], images: bool) -> None:
        super().__init__()
        self.convolution, self.add, self.images = Convolution(window, after), AddChannels(), images

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        weight = weight.astype(x.dtype)
        if self.images:
            n, c, h, w = x.shape
            x = x.reshape(n, c, 1, h, w)
            weight = weight.reshape(weight.shape[:2] + (1,) + weight.shape[2:])
        out = self.convolution(x, weight)
        if bias is not None:
            out = self.add(out, bias.astype(x.dtype))
        return out.reshape(out.shape[:2] + out.shape[3:]) if self.images else out


def conv2d(channels: int, kernel: tuple[int, int], stride: tuple[int, int], padding: Padding2d) -> nn.Cell:
    """(x [N, C, H, W], weight [channels, C, *kernel], bias or None) -> [N, channels, H', W']; padding with zeros."""
    top, bottom, left, right = padding
    return _Biased(Window((1, *kernel), (1, *stride), (0, top, left)), (0, bottom, right), True)


def conv3d(channels: int, kernel: tuple[int, int, int], stride: tuple[int, int, int], padding: Padding3d) -> nn.Cell:
    """(x [N, C, T, H, W], weight [channels, C, *kernel], bias or None) -> [N, channels, T', H', W']."""
    front, back, top, bottom, left, right = padding
    return _Biased(Window(kernel, stride, (front, top, left)), (back, bottom, right), False)


class GroupNorm(nn.Cell):
    """x [N, C, ...], weight and bias [C] -> normalised by group, and after ``silu``; and what going back needs.

    That is x - mean, 1 / deviation [N groups, 1], and SiLU's sigmoid (without it one number): a pass over memory costs
    more than anything computed in it. With c = x - mean, r = 1 / deviation and g = dout weight:
    dx = r (g - mean(g) - c r^2 mean(g c)), by group.
    """

    def __init__(self, groups: int, eps: float, silu: bool) -> None:
        super().__init__()
        self.groups, self.eps, self.silu = groups, eps, silu
        self._bias_add = P.BiasAdd()

    def _by_channel(self, values: Tensor, n: int, c: int) -> Tensor:
        """[N groups, 1] -> [N C, 1]"""
        return spread(values, c // self.groups).reshape(n * c, 1)

    def _by_group(self, values: Tensor, n: int) -> Tensor:
        """[N C, 1] -> sums [N groups, 1]"""
        return row_sums(values.reshape(n * self.groups, -1))

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        n, c = x.shape[:2]
        rows = x.reshape(n * self.groups, -1)
        count = rows.shape[1]
        centered = rows - spread(row_sums(rows) * (1.0 / count), count)
        inverse = _rsqrt(row_sums(centered * centered) * (1.0 / count) + self.eps)
        centered = centered.reshape(n * c, -1)
        slope = self._by_channel(inverse, n, c) * _tile(weight.reshape(c, 1), (n, 1))
        scaled = centered * spread(slope, centered.shape[1])
        out = self._bias_add(scaled.reshape(n, c, 1, -1), bias)
        gate = inverse
        if self.silu:
            gate = _sigmoid(out)
            out = out * gate
        return out.reshape(x.shape), centered, inverse, gate

    def bprop(
        self, x: Tensor, weight: Tensor, bias: Tensor, out: tuple[Tensor, ...], dout: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        n, c = x.shape[:2]
        result, centered, inverse, gate = out
        grad = dout[0].reshape(n, c, 1, -1)
        if self.silu:
            # The slope of u s(u), with s(u) the gate and u s(u) the result.
            result = result.reshape(grad.shape)
            grad = grad * (gate + (result - result * gate))
        grad = grad.reshape(n * c, -1)
        pixels = grad.shape[1]
        sums, products = row_sums(grad), row_sums(grad * centered)
        weights = _tile(weight.reshape(c, 1), (n, 1))
        rates = self._by_channel(inverse, n, c)
        share = 1.0 / (pixels * (c // self.groups))
        offset = inverse * self._by_group(sums * weights, n) * share
        slope = inverse * inverse * inverse * self._by_group(products * weights, n) * share
        moved = centered * spread(self._by_channel(slope, n, c), pixels)
        moved = self._bias_add(moved.reshape(1, n * c, 1, pixels), self._by_channel(offset, n, c).reshape(n * c))
        dx = grad * spread(rates * weights, pixels) - moved.reshape(grad.shape)
        samples = P.ones((1, n), x.dtype)
        dweight = _matmul(samples, (products * rates).reshape(n, c)).reshape(c)
        return dx.reshape(x.shape), dweight, _matmul(samples, sums.reshape(n, c)).reshape(c)


def group_norm(groups: int, eps: float, silu: bool) -> nn.Cell:
    """(x [N, C, ...], weight [C], bias [C]) -> normalised over each group of channels and all that follows.

    silu: then x * sigmoid(x).
    """
    return _Norm(groups, eps, silu)


class _Norm(nn.Cell):
    def __init__(self, groups: int, eps: float, silu: bool) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, eps, silu)

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        wide = x.astype(ms.float32)
        return self.norm(wide, weight.astype(ms.float32), bias.astype(ms.float32))[0].astype(x.dtype)


def upsample_nearest(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, 2 H, 2 W]: every pixel four times."""
    n, c, h, w = x.shape
    # Rows are doubled by a product with [1 1 0 0 …; 0 0 1 1 …; …], written twice: each row becomes two.
    wide = _matmul(x.reshape(-1, w), _doubling(w).astype(x.dtype))
    return wide.reshape(n, c, 2 * h, 2 * w)


def exp(x: Tensor) -> Tensor:
    """In float64, for small tensors: the float32 kernel is off by up to 4e-6 of a value."""
    return P.exp(x.astype(ms.float64)).astype(x.dtype)

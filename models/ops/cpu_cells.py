"""Operators with hand-written gradients for the CPU, built from its fast kernels only.

Measured on MindSpore 2.10 (docs/performance.md): a product with broadcasting costs ten times one without, a sum over an
axis as much, LayerNorm's gradient more than both; matrix products run at the processor's full rate. So sums along rows
and columns are products with a vector of ones, and what would broadcast is spread by an outer product first. Both are
exact up to the order of summation. Quotients use RealDiv, whose kernel is several times faster than Div's.
"""

from __future__ import annotations

import math

from mindspore import Tensor, nn
from mindspore import ops as P

GELU_LINEAR = 2.0 * math.sqrt(2.0 / math.pi)
GELU_CUBIC = 0.044715 * GELU_LINEAR

_matmul = P.MatMul()
_matmul_ta = P.MatMul(transpose_a=True)
_bmm = P.BatchMatMul()
_bmm_ta = P.BatchMatMul(transpose_a=True)
_bmm_tb = P.BatchMatMul(transpose_b=True)
_bias_add = P.BiasAdd()
_divide = P.RealDiv()
_rsqrt = P.Rsqrt()
_sigmoid = P.Sigmoid()
_softmax = P.Softmax(-1)


class AddBias(nn.Cell):
    """x [N, C] + bias [C]."""

    def construct(self, x: Tensor, bias: Tensor) -> Tensor:
        return _bias_add(x, bias)

    def bprop(self, x: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        rows, width = dout.shape
        return dout, _matmul(P.ones((1, rows), dout.dtype), dout).reshape(width)


class GateAdd(nn.Cell):
    """residual [G, N, C] + gate [G, 1, C] * x [G, N, C]."""

    def construct(self, residual: Tensor, gate: Tensor, x: Tensor) -> Tensor:
        groups, rows, _ = x.shape
        return residual + _bmm(P.ones((groups, rows, 1), x.dtype), gate) * x

    def bprop(
        self, residual: Tensor, gate: Tensor, x: Tensor, out: Tensor, dout: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        groups, rows, _ = x.shape
        dgate = _bmm(P.ones((groups, 1, rows), x.dtype), dout * x)
        return dout, dgate, _bmm(P.ones((groups, rows, 1), x.dtype), gate) * dout


class NormModulate(nn.Cell):
    """x [G, N, C], shift and scale [G, 1, C] -> LayerNorm(x) (1 + scale) + shift, and 1 / deviation [G, N, 1].

    With c = x - mean, r = 1 / deviation, s = 1 + scale and g = dout s: dx = r (g - mean(g) - c r^2 mean(g c)).
    """

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps

    def _centered(self, x: Tensor) -> Tensor:
        groups, _, width = x.shape
        mean = _bmm(x, P.fill(x.dtype, (groups, width, 1), 1.0 / width))
        return x - _bmm(mean, P.ones((groups, 1, width), x.dtype))

    def construct(self, x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        groups, rows, width = x.shape
        centered = self._centered(x)
        variance = _bmm(centered * centered, P.fill(x.dtype, (groups, width, 1), 1.0 / width))
        inverse = _rsqrt(variance + self.eps)
        moved = _bmm(P.ones((groups, rows, 1), x.dtype), shift)
        return centered * _bmm(inverse, scale + 1.0) + moved, inverse

    def bprop(
        self, x: Tensor, shift: Tensor, scale: Tensor, out: tuple[Tensor, Tensor], dout: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        groups, rows, width = x.shape
        inverse, grad = out[1], dout[0]
        centered = self._centered(x)
        product = grad * centered
        dshift = _bmm(P.ones((groups, 1, rows), x.dtype), grad)
        dscale = _bmm_ta(inverse, product)
        factor = scale + 1.0
        share = factor * (1.0 / width)
        offset = inverse * _bmm_tb(grad, share)
        slope = inverse * inverse * inverse * _bmm_tb(product, share)
        ones = P.ones((groups, 1, width), x.dtype)
        dx = grad * _bmm(inverse, factor) - _bmm(offset, ones) - centered * _bmm(slope, ones)
        return dx, dshift, dscale


class RmsNorm(nn.Cell):
    """x [N, d], weight [1, d] -> x / sqrt(mean(x**2) + eps) * weight, and 1 / that root [N, 1]."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def construct(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        width = x.shape[-1]
        inverse = _rsqrt(_matmul(x * x, P.fill(x.dtype, (width, 1), 1.0 / width)) + self.eps)
        return x * _matmul(inverse, weight), inverse

    def bprop(
        self, x: Tensor, weight: Tensor, out: tuple[Tensor, Tensor], dout: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        width = x.shape[-1]
        inverse, grad = out[1], dout[0]
        product = grad * x
        slope = inverse * inverse * inverse * _matmul(product, weight.reshape(width, 1) * (1.0 / width))
        dx = grad * _matmul(inverse, weight) - x * _matmul(slope, P.ones((1, width), x.dtype))
        return dx, _matmul_ta(inverse, product)


class Gelu(nn.Cell):
    """x sigmoid(z) with z = 2 sqrt(2/pi) (x + 0.044715 x^3): the tanh approximation."""

    def construct(self, x: Tensor) -> Tensor:
        return x * _sigmoid(x * (x * x * GELU_CUBIC + GELU_LINEAR))

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        cubic = x * x * GELU_CUBIC
        gate = _sigmoid(x * (cubic + GELU_LINEAR))
        # x z' = z + 2 * cubic * x, and out = x * gate.
        slope = (x * gate) * (1.0 - gate) * (cubic * 3.0 + GELU_LINEAR)
        return ((gate + slope) * dout,)


class Attention(nn.Cell):
    """softmax(q k^T) v and the weights [B, h, N, M]. q [B, h, N, d], already scaled; k and v [B, h, M, d]."""

    def construct(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        weights = _softmax(_bmm_tb(q, k))
        return _bmm(weights, v), weights

    def bprop(
        self, q: Tensor, k: Tensor, v: Tensor, out: tuple[Tensor, Tensor], dout: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        return attention_gradients(q, k, v, out, dout[0])


class BiasedAttention(nn.Cell):
    """softmax(q k^T + bias) v and the weights; bias [B or 1, 1, 1, M] only hides tokens and gets no gradient."""

    def construct(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        batch, heads, rows, _ = q.shape
        samples, tokens = bias.shape[0], bias.shape[3]
        count = batch * heads * rows // samples
        spread = _bmm(P.ones((samples, count, 1), q.dtype), bias.reshape(samples, 1, tokens))
        weights = _softmax(_bmm_tb(q, k) + spread.reshape(batch, heads, rows, tokens))
        return _bmm(weights, v), weights

    def bprop(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, out: tuple[Tensor, Tensor], dout: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dq, dk, dv = attention_gradients(q, k, v, out, dout[0])
        return dq, dk, dv, P.zeros_like(bias)


def attention_gradients(
    q: Tensor, k: Tensor, v: Tensor, out: tuple[Tensor, Tensor], dout: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv. Softmax: dscores = weights (dweights - sum(dweights weights)), and that sum is sum(dout out)."""
    attended, weights = out
    width, tokens = v.shape[-1], v.shape[-2]
    total = _matmul((dout * attended).reshape(-1, width), P.ones((width, 1), v.dtype))
    spread = _matmul(total, P.ones((1, tokens), v.dtype)).reshape(weights.shape)
    dscores = weights * (_bmm_tb(dout, v) - spread)
    return _bmm(dscores, k), _bmm_ta(dscores, q), _bmm_ta(weights, dout)


def group_count(shape: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Rows of ``other`` [..., C] if each belongs to a run of rows of ``shape`` [..., C], else 0.

    So it is where ``other`` begins like ``shape`` and goes on with ones: [B, T, 1, C] over [B, T, S, C].
    """
    groups, equal = 1, True
    if len(shape) != len(other) or shape[-1] != other[-1]:
        return 0
    for mine, its in zip(shape[:-1], other[:-1]):  # noqa: B905 - the graph compiler knows no keywords of zip()
        equal = equal and mine == its
        if not equal and its != 1:
            return 0
        groups *= its
    return groups

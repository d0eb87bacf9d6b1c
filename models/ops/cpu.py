"""Compositions for the CPU, where the fused kernels do not exist. Full float32 precision, differentiable everywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as P

from models.ops.common import adamw_update, gate_add, lerp_update, modulate, sum_of_squares

__all__ = [
    "adamw_update",
    "attention",
    "gate_add",
    "gelu",
    "lerp_update",
    "linear",
    "modulate",
    "norm_modulate",
    "rms_norm",
    "silu",
    "sum_of_squares",
    "total_squares",
]

# Elements summed at once on the host: they stay in the cache.
_CHUNK = 1 << 16

_GELU_LINEAR = 2.0 * math.sqrt(2.0 / math.pi)
_GELU_CUBIC = 0.044715 * _GELU_LINEAR
_GELU_CUBIC3 = 3.0 * _GELU_CUBIC

_matmul_tb = P.MatMul(transpose_b=True)
_layer_norm = P.LayerNorm(-1, -1, 1e-6)
_bmm = P.BatchMatMul()
_bmm_tb = P.BatchMatMul(transpose_b=True)
_softmax = P.Softmax(-1)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias; flattened to 2-D first, which is several times faster than a 3-D product here."""
    out = _matmul_tb(x.reshape(-1, x.shape[-1]), weight.astype(x.dtype))
    if bias is not None:
        out = out + bias.astype(x.dtype)
    return out.reshape(x.shape[:-1] + (weight.shape[0],))


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm (eps 1e-6, no affine part) over the last axis, then ``* (1 + scale) + shift``."""
    width = x.shape[-1]
    normed = _layer_norm(x, P.ones((width,), x.dtype), P.zeros((width,), x.dtype))[0]
    return modulate(normed, shift, scale)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean(x**2) + eps) * weight over the last axis (Zhang & Sennrich 2019)."""
    wide = x.astype(ms.float32)
    normed = wide * P.rsqrt((wide * wide).mean(-1, keep_dims=True) + eps)
    return normed.astype(x.dtype) * weight.astype(x.dtype)


class _Gelu(nn.Cell):
    """x * sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)): the tanh approximation, written with one exponential.

    The float32 kernels of exp, sigmoid and tanh here are off by several units in the last place, expm1 is not.
    """

    def construct(self, x: Tensor) -> Tensor:
        return x / (2.0 + P.expm1(x * (x * x * -_GELU_CUBIC - _GELU_LINEAR)))

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        squared = x * x
        z = x * (squared * _GELU_CUBIC + _GELU_LINEAR)
        above, below = 1.0 / (2.0 + P.expm1(-z)), 1.0 / (2.0 + P.expm1(z))  # sigmoid(z) and 1 - sigmoid(z)
        return (dout * above * (x * below * (squared * _GELU_CUBIC3 + _GELU_LINEAR) + 1.0),)


_gelu = _Gelu()


def gelu(x: Tensor) -> Tensor:
    """GELU, tanh approximation (Hendrycks & Gimpel 2016)."""
    return _gelu(x)


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x). In float64: the float32 exponential here is off by several units, the same way for all values.

    Used on the time embedding only, a few thousand numbers, from which every block takes its modulation.
    """
    wide = x.astype(ms.float64)
    return (wide / (1.0 + P.exp(-wide))).astype(x.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """softmax(scale q k^T + bias) v. q [B, h, N, d], k and v [B, h, M, d] -> [B, h, N, d].

    The softmax runs in float64: in float32 its exponential is several units off (see :class:`_Gelu`).
    """
    scores = _bmm_tb(q * scale, k).astype(ms.float32)
    if bias is not None:
        scores = scores + bias
    return _bmm(_softmax(scores.astype(ms.float64)).astype(q.dtype), v)


def total_squares(tensors: Sequence[Tensor]) -> float:
    """In float64: however the elements are spread over tensors and ranks, sums agree to the last bit of a float32."""
    total = 0.0
    for tensor in tensors:
        flat = tensor.asnumpy().reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK].astype(np.float64)
            total += float(np.dot(part, part))
    return total

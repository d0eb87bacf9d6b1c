"""Compositions for the CPU, where the fused kernels do not exist. Full float32 precision, differentiable everywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor
from mindspore import ops as P
from mindspore.ops import constexpr

from models.ops import cpu_cells as cells
from models.ops.common import AdamWConstants, biased_attention, lerp_update, modulate
from models.ops.cpu_images import conv2d, conv3d, exp, group_norm, upsample_nearest

__all__ = [
    "adamw_update",
    "attention",
    "biased_attention",
    "conv2d",
    "conv3d",
    "exp",
    "gate_add",
    "gelu",
    "group_norm",
    "lerp_update",
    "linear",
    "modulate",
    "norm_modulate",
    "rms_norm",
    "settle",
    "silu",
    "sum_of_squares",
    "total_squares",
    "upsample_nearest",
]

# Elements summed at once on the host: they stay in the cache.
_CHUNK = 1 << 16
_LOWEST = -6e4

_matmul_tb = P.MatMul(transpose_b=True)
_matmul = P.MatMul()
_layer_norm = P.LayerNorm(-1, -1, 1e-6)
_adam = P.Adam()

_add_bias = cells.AddBias()
_gate_add = cells.GateAdd()
_norm_modulate = cells.NormModulate()
_rms_norm = cells.RmsNorm(1e-6)
_gelu = cells.Gelu()
_attention = cells.Attention()
_biased_attention = cells.BiasedAttention()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias; flattened to 2-D first, which is several times faster than a 3-D product here."""
    out = _matmul_tb(x.reshape(-1, x.shape[-1]), weight.astype(x.dtype))
    if bias is not None:
        out = _add_bias(out, bias.astype(x.dtype))
    return out.reshape(x.shape[:-1] + (weight.shape[0],))


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm (eps 1e-6, no affine part) over the last axis, then ``* (1 + scale) + shift``."""
    width = x.shape[-1]
    groups = cells.group_count(x.shape, shift.shape)
    if groups == 0 or shift.shape != scale.shape:
        normed = _layer_norm(x, P.ones((width,), x.dtype), P.zeros((width,), x.dtype))[0]
        return modulate(normed, shift, scale)
    grouped = (groups, -1, width)
    out = _norm_modulate(x.reshape(grouped), shift.reshape(grouped), scale.reshape(grouped))[0]
    return out.reshape(x.shape)


def gate_add(residual: Tensor, gate: Tensor, x: Tensor) -> Tensor:
    """residual + gate * x, the gate broadcast over x."""
    groups = cells.group_count(x.shape, gate.shape)
    if groups == 0 or residual.shape != x.shape:
        return residual + gate * x
    grouped = (groups, -1, x.shape[-1])
    return _gate_add(residual.reshape(grouped), gate.reshape(grouped), x.reshape(grouped)).reshape(x.shape)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean(x**2) + eps) * weight over the last axis (Zhang & Sennrich 2019)."""
    width = x.shape[-1]
    wide = x.astype(ms.float32)
    if eps == 1e-6:
        out = _rms_norm(wide.reshape(-1, width), weight.astype(ms.float32).reshape(1, width))[0]
        return out.reshape(x.shape).astype(x.dtype)
    normed = wide * P.rsqrt((wide * wide).mean(-1, keep_dims=True) + eps)
    return normed.astype(x.dtype) * weight.astype(x.dtype)


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
    """softmax(scale q k^T + bias) v. q [B, h, N, d], k and v [B, h, M, d] -> [B, h, N, d]; no gradient for the bias."""
    if bias is None:
        return _attention(q * scale, k, v)[0]
    if q.dtype == ms.float16:
        # As low as half precision goes without becoming -inf, of which a row alone would be NaN.
        bias = P.maximum(bias, _LOWEST).astype(ms.float16)
    return _biased_attention(q * scale, k, v, bias)[0]


def sum_of_squares(x: Tensor) -> Tensor:
    """Scalar float32: sums of columns by a product with ones, then their sum; a sum over two axes is far slower."""
    wide = x.astype(ms.float32)
    if x.ndim < 2:
        return P.ReduceSum()((wide * wide).reshape(-1), (0,))
    wide = wide.reshape(-1, x.shape[-1])
    return P.ReduceSum()(_matmul(P.ones((1, wide.shape[0]), ms.float32), wide * wide).reshape(-1), (0,))


def adamw_update(
    param: Parameter,
    exp_avg: Parameter,
    exp_avg_sq: Parameter,
    grad: Tensor,
    hyper: Tensor,
    betas: AdamWConstants,
    decays: bool = True,
) -> None:
    """:func:`models.ops.common.adamw_update` by the one kernel that does it in a single pass over memory.

    The kernel is Adam without decay, told that its own corrections are over (powers of beta 0). With c1 = 1 - beta1**n
    and c2 = 1 - beta2**n, lr / c1 * m / (sqrt(v / c2) + eps) = lr sqrt(c2) / c1 * m / (sqrt(v) + eps sqrt(c2)).
    It works out 1 - beta2 in float32, for 0.999 1.3e-5 off; gradients enlarged by the root of that, 6e-6, make
    exp_avg_sq right, and the same factor in exp_avg is taken out of the step. Elements at the ends of the kernel's
    threads may round differently by a unit in the last place.
    """
    enlarged = _gradient_factor(betas[1], betas[2])
    zero = P.zeros((), ms.float32)
    eps, rate = hyper[2] * betas[3], hyper[1] * hyper[2] / enlarged
    if decays:
        P.assign(param, param * hyper[0])
    _adam(
        param, exp_avg, exp_avg_sq, zero, zero, rate, 1.0 - betas[0], betas[1], eps,
        grad.astype(ms.float32) * enlarged,
    )  # fmt: skip


@constexpr
def _gradient_factor(beta2: float, complement: float) -> float:
    """Root of (1 - beta2) over what float32 makes of it. Worked out by Python, also in a compiled function."""
    return math.sqrt(complement / float(np.float32(1) - np.float32(beta2)))


def settle() -> None:
    """Nothing to wait for: kernels run where they are called (``launch_blocking`` in models/ops/__init__.py)."""


def total_squares(tensors: Sequence[Tensor]) -> float:
    """In float64: however the elements are spread over tensors and ranks, sums agree to the last bit of a float32."""
    total = 0.0
    for tensor in tensors:
        flat = tensor.asnumpy().reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK].astype(np.float64)
            total += float(np.dot(part, part))
    return total

"""Compositions for the CPU, where the fused kernels do not exist. Full float32 precision, differentiable everywhere."""

from __future__ import annotations

import math

import mindspore as ms
from mindspore import Parameter, Tensor
from mindspore import ops as P

_GELU_LINEAR = 2.0 * math.sqrt(2.0 / math.pi)
_GELU_CUBIC = 0.044715 * _GELU_LINEAR

AdamWConstants = tuple[float, float, float, float]

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


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


def gate_add(residual: Tensor, gate: Tensor, x: Tensor) -> Tensor:
    return residual + gate * x


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean(x**2) + eps) * weight over the last axis (Zhang & Sennrich 2019)."""
    wide = x.astype(ms.float32)
    normed = wide * P.rsqrt((wide * wide).mean(-1, keep_dims=True) + eps)
    return normed.astype(x.dtype) * weight.astype(x.dtype)


def gelu(x: Tensor) -> Tensor:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), written as x * sigmoid(2 ...): the same, and cheaper here."""
    return x * P.sigmoid(x * (_GELU_LINEAR + _GELU_CUBIC * (x * x)))


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x). In float64: the float32 exponential here is off by several units, the same way for all values.

    Used on the time embedding only, a few thousand numbers, from which every block takes its modulation.
    """
    wide = x.astype(ms.float64)
    return (wide / (1.0 + P.exp(-wide))).astype(x.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """softmax(scale q k^T + bias) v, softmax in float32. q [B, h, N, d], k and v [B, h, M, d] -> [B, h, N, d]."""
    scores = _bmm_tb(q * scale, k).astype(ms.float32)
    if bias is not None:
        scores = scores + bias
    return _bmm(_softmax(scores).astype(q.dtype), v)


def sum_of_squares(x: Tensor) -> Tensor:
    wide = x.astype(ms.float32)
    return (wide * wide).sum()


def adamw_update(
    param: Parameter, exp_avg: Parameter, exp_avg_sq: Parameter, grad: Tensor, hyper: Tensor, betas: AdamWConstants
) -> None:
    """One step of one parameter, in place (Loshchilov & Hutter 2019; arithmetic of torch.optim.AdamW).

    hyper float32 [3]: 1 - lr * weight_decay, lr / (1 - beta1**n), sqrt(1 - beta2**n).
    betas: (1 - beta1, beta2, 1 - beta2, eps). Subtractions of Python numbers inside a compiled graph happen in
    float32, where 1 - 0.999 is off by 1e-5 of itself: constants are worked out by the caller.
    """
    grad = grad.astype(ms.float32)
    average = exp_avg + (grad - exp_avg) * betas[0]
    square = exp_avg_sq * betas[1] + (grad * grad) * betas[2]
    update = average / (P.sqrt(square) / hyper[2] + betas[3])
    P.assign(exp_avg, average)
    P.assign(exp_avg_sq, square)
    P.assign(param, (param * hyper[0] - update * hyper[1]).astype(param.dtype))


def lerp_update(target: Parameter, value: Tensor, decay: float, complement: float) -> None:
    """target = decay * target + complement * value, with complement = 1 - decay worked out by the caller."""
    P.assign(target, target * decay + value.astype(target.dtype) * complement)

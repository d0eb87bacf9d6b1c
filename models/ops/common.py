"""Operators that are the same composition on every device."""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, Tensor
from mindspore import ops as P

AdamWConstants = tuple[float, float, float, float]
# Zeros that a convolution adds: top, bottom, left, right; for clips front and back come first.
Padding2d = tuple[int, int, int, int]
Padding3d = tuple[int, int, int, int, int, int]


_bmm = P.BatchMatMul()
_bmm_tb = P.BatchMatMul(transpose_b=True)
_softmax = P.Softmax(-1)


def biased_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T + bias) v, scores and softmax in float32; the bias differs by head, query and key (T5)."""
    scores = _bmm_tb(q, k).astype(ms.float32) + bias
    return _bmm(_softmax(scores).astype(v.dtype), v)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x * (1 + scale) + shift, the latter two broadcast over x."""
    return x * (1 + scale) + shift


def gate_add(residual: Tensor, gate: Tensor, x: Tensor) -> Tensor:
    """residual + gate * x, the gate broadcast over x."""
    return residual + gate * x


def sum_of_squares(x: Tensor) -> Tensor:
    """Scalar float32."""
    wide = x.astype(ms.float32)
    return (wide * wide).sum()


def adamw_update(
    param: Parameter,
    exp_avg: Parameter,
    exp_avg_sq: Parameter,
    grad: Tensor,
    hyper: Tensor,
    betas: AdamWConstants,
    decays: bool = True,
) -> None:
    """One step of one parameter, in place (Loshchilov & Hutter 2019; arithmetic of torch.optim.AdamW).

    hyper float32 [3]: 1 - lr * weight_decay, lr / (1 - beta1**n), sqrt(1 - beta2**n).
    betas: (1 - beta1, beta2, 1 - beta2, eps). Subtractions of Python numbers inside a compiled graph happen in
    float32, where 1 - 0.999 is off by 1e-5 of itself: constants are worked out by the caller.
    decays: False where the weight decay is 0, and hyper[0] therefore 1; saves the product.
    """
    grad = grad.astype(ms.float32)
    average = exp_avg + (grad - exp_avg) * betas[0]
    square = exp_avg_sq * betas[1] + (grad * grad) * betas[2]
    update = average / (P.sqrt(square) / hyper[2] + betas[3])
    P.assign(exp_avg, average)
    P.assign(exp_avg_sq, square)
    kept = param * hyper[0] if decays else param
    P.assign(param, (kept - update * hyper[1]).astype(param.dtype))


def lerp_update(target: Parameter, value: Tensor, decay: float, complement: float) -> None:
    """target = decay * target + complement * value, with complement = 1 - decay worked out by the caller."""
    P.assign(target, target * decay + value.astype(target.dtype) * complement)

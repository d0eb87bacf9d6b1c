"""Native and fused operators of Ascend. Every function has the semantics of its namesake in :mod:`models.ops.cpu`."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
from mindspore import Tensor, mint
from mindspore import ops as P

from models.ops.ascend_images import conv2d, conv3d, exp, group_norm, upsample_nearest
from models.ops.common import adamw_update, biased_attention, gate_add, lerp_update, modulate, sum_of_squares

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


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias over the last axis, in x's dtype."""
    return mint.nn.functional.linear(x, weight.astype(x.dtype), None if bias is None else bias.astype(x.dtype))


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm (eps 1e-6, no affine part) over the last axis, then ``* (1 + scale) + shift``."""
    return modulate(mint.nn.functional.layer_norm(x, (x.shape[-1],), eps=1e-6), shift, scale)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean(x**2) + eps) * weight over the last axis; the kernel accumulates in float32."""
    return P.rms_norm(x, weight.astype(x.dtype), eps)[0]


def gelu(x: Tensor) -> Tensor:
    """GELU, tanh approximation."""
    return mint.nn.functional.gelu(x, approximate="tanh")


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    return mint.nn.functional.silu(x)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """softmax(scale q k^T + bias) v. Half precision takes the fused kernel, float32 the composition.

    The fused kernel wants a boolean mask, True = hidden, for every query: ``bias`` is 0 or very negative.
    """
    if q.dtype == ms.float32:
        scores = mint.matmul(q * scale, k.transpose(0, 1, 3, 2))
        if bias is not None:
            scores = scores + bias
        return mint.matmul(mint.nn.functional.softmax(scores, dim=-1), v)
    hidden = None
    if bias is not None:
        hidden = mint.broadcast_to(bias < 0, (q.shape[0], 1, q.shape[2], k.shape[2]))
    return P.flash_attention_score(
        q, k, v, q.shape[1], attn_mask=hidden, scalar_value=scale, input_layout="BNSD"
    )  # fmt: skip


def settle() -> None:
    """Waits for all streams: what comes after can be timed by the host's clock."""
    ms.runtime.synchronize()


def total_squares(tensors: Sequence[Tensor]) -> float:
    """On the device in float32 (it has no float64), one transfer for all tensors."""
    return float(P.addn([sum_of_squares(tensor) for tensor in tensors]).asnumpy())

"""Operators that differ by device: the one place that knows which device it is.

``ops.gelu`` and the others resolve on first use to :mod:`models.ops.ascend` (native, fused) or :mod:`models.ops.cpu`
(compositions with the same semantics, for devices without those kernels), according to MindSpore's device target at
that moment: set the device before the first model is built. Layers call ``ops.<name>`` and never ask.

==================  ====================================================================================
linear              x [..., in], weight [out, in], bias [out] or None -> [..., out], in x's dtype
modulate            x * (1 + scale) + shift
norm_modulate       LayerNorm over the last axis without affine part (eps 1e-6), then modulate
rms_norm            x [..., d], weight [d]: root mean square norm in float32, result in x's dtype
gelu                tanh approximation of GELU
silu                x * sigmoid(x)
attention           q, k, v [B, heads, N or M, d], bias broadcastable to [B, heads, N, M] or None
biased_attention    q, k, v as above, not scaled, bias float32 [B, heads, N, M]: softmax in float32
gate_add            residual + gate * x
conv2d, conv3d      (channels, kernel, stride, padding) -> a cell (x, weight, bias or None) -> convolved
exp                 e to the x, exact to the last bits; for small tensors
group_norm          (groups, eps, whether silu follows) -> a cell (x [N, C, ...], weight [C], bias [C])
upsample_nearest    [N, C, H, W] -> [N, C, 2 H, 2 W]
adamw_update        one AdamW step of one parameter, in place
lerp_update         target = decay * target + (1 - decay) * value, in place
sum_of_squares      scalar float32 sum of squares of one tensor
total_squares       sum of squares of many tensors as a Python float; not for compiled functions
settle              returns when the device has done everything it was given
==================  ====================================================================================
"""

from __future__ import annotations

import importlib
from typing import Any

import mindspore as ms

OPERATORS = (
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
)


def device_target() -> str:
    """MindSpore's device target: ``Ascend`` or ``CPU``."""
    return str(ms.get_context("device_target"))


def _backend() -> Any:
    if device_target() == "Ascend":
        return importlib.import_module("models.ops.ascend")
    # Kernels take microseconds here; handing each to another thread costs more than running it, several times more
    # where cores are shared with other workers.
    ms.runtime.launch_blocking()
    return importlib.import_module("models.ops.cpu")


def __getattr__(name: str) -> Any:
    if name not in OPERATORS:
        raise AttributeError(f"module {__name__!r} has no operator {name!r}")
    backend = _backend()
    for operator in OPERATORS:
        globals()[operator] = getattr(backend, operator)
    return globals()[name]

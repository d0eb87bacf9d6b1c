"""Linear layers and the two-layer perceptron. Parameters are float32; they are cast to the input's dtype where used."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from models import ops


def parameter(*shape: int, value: float = 0.0, trainable: bool = True) -> Parameter:
    """A float32 parameter filled with ``value``."""
    return Parameter(Tensor(np.full(shape, value, np.float32)), requires_grad=trainable)


class Linear(nn.Cell):
    """x [..., in] -> [..., out], in x's dtype. ``weight`` [out, in], ``bias`` [out].

    ``source``, here and in other cells with parameters of their own: None, or who gives the parameters and takes their
    gradients in place of the framework (:mod:`models.parallel.sources`). ``first``: x is data, nothing before learns.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, first: bool = False) -> None:
        super().__init__()
        self.weight = parameter(out_features, in_features)
        self.bias = parameter(out_features) if bias else None
        self.first = first
        self.source = None
        self._linear = ops.linear

    def construct(self, x: Tensor) -> Tensor:
        if self.source is not None:
            return self.source(x)
        return self._linear(x, self.weight, self.bias)


class SiLU(nn.Cell):
    """x * sigmoid(x)."""

    def __init__(self) -> None:
        super().__init__()
        self._silu = ops.silu

    def construct(self, x: Tensor) -> Tensor:
        return self._silu(x)


class Mlp(nn.Cell):
    """fc1, GELU (tanh approximation), fc2, on the last axis."""

    def __init__(self, in_features: int, hidden_features: int, out_features: int, first: bool = False) -> None:
        super().__init__()
        self.fc1 = Linear(in_features, hidden_features, first=first)
        self.fc2 = Linear(hidden_features, out_features)
        self._gelu = ops.gelu

    def construct(self, x: Tensor) -> Tensor:
        return self.fc2(self._gelu(self.fc1(x)))


class RMSNorm(nn.Cell):
    """Root mean square norm over the last axis, computed in float32 (eps 1e-6). ``weight`` [dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = parameter(dim, value=1.0)
        self.source = None
        self._rms_norm = ops.rms_norm

    def construct(self, x: Tensor) -> Tensor:
        weight = self.weight if self.source is None else self.source("weight")
        return self._rms_norm(x, weight)


def as_dtype(name: str) -> ms.Type:
    """MindSpore's type for ``fp32``, ``fp16`` or ``bf16``."""
    return {"fp32": ms.float32, "fp16": ms.float16, "bf16": ms.bfloat16}[name]

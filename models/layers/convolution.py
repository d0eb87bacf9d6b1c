"""Convolutions and group norms with PyTorch's parameter names, and the factor-2 enlargement between them."""

from __future__ import annotations

from typing import Any

from mindspore import Parameter, Tensor, nn

from models import ops
from models.layers.linear import parameter


class Conv2d(nn.Cell):
    """x [N, in, H, W] -> [N, out, H', W'] in x's dtype. ``weight`` [out, in, k, k], ``bias`` [out].

    padding: zeros (top, bottom, left, right), or as many on every side. ``source``: see :class:`models.layers.Linear`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | tuple[int, int, int, int] = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.weight = parameter(out_channels, in_channels, kernel_size, kernel_size)
        self.bias = parameter(out_channels) if bias else None
        around = (padding,) * 4 if isinstance(padding, int) else padding
        self.source = None
        self._conv2d = ops.conv2d(out_channels, (kernel_size, kernel_size), (stride, stride), around)

    def construct(self, x: Tensor) -> Tensor:
        weight, bias = _taken(self)
        return self._conv2d(x, weight, bias)


class Conv3d(nn.Cell):
    """x [N, in, T, H, W] -> [N, out, T', H', W'] in x's dtype. ``weight`` [out, in, kt, kh, kw], ``bias`` [out].

    padding: zeros (front, back, top, bottom, left, right).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int, int],
        stride: tuple[int, int, int] = (1, 1, 1),
        padding: tuple[int, int, int, int, int, int] = (0, 0, 0, 0, 0, 0),
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.weight = parameter(out_channels, in_channels, *kernel_size)
        self.bias = parameter(out_channels) if bias else None
        self.source = None
        self._conv3d = ops.conv3d(out_channels, kernel_size, stride, padding)

    def construct(self, x: Tensor) -> Tensor:
        weight, bias = _taken(self)
        return self._conv3d(x, weight, bias)


class GroupNorm(nn.Cell):
    """x [N, C, ...] normalised over each of ``num_groups`` groups of channels and all that follows, in float32.

    ``weight`` and ``bias`` [C]. activation: what comes after: ``silu``, ``relu``, or nothing.
    """

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, activation: str = "") -> None:
        super().__init__()
        self.weight = parameter(num_channels, value=1.0)
        self.bias = parameter(num_channels)
        self.source = None
        self._group_norm = ops.group_norm(num_groups, eps, activation == "silu")
        self.relu = nn.ReLU() if activation == "relu" else None

    def construct(self, x: Tensor) -> Tensor:
        weight, bias = _taken(self)
        x = self._group_norm(x, weight, bias)
        return x if self.relu is None else self.relu(x)


def _taken(cell: Any) -> tuple[Parameter, Parameter | None]:
    """The layer's weight and bias, from its source where it has one."""
    if cell.source is None:
        return cell.weight, cell.bias
    return cell.source("weight"), None if cell.bias is None else cell.source("bias")

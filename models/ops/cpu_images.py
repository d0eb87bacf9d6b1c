"""Operators on images and clips for the CPU: convolutions, group norms, enlargement."""

from __future__ import annotations

from mindspore import Tensor, nn
from mindspore import ops as P

from models.ops.common import Padding2d, Padding3d


class _Conv(nn.Cell):
    """Convolution through the library's kernel, bias added after."""

    def __init__(self, convolution: P.Primitive) -> None:
        super().__init__()
        self._convolution = convolution
        self._bias_add = P.BiasAdd()

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out = self._convolution(x, weight.astype(x.dtype))
        if bias is None:
            return out
        shape = out.shape
        return self._bias_add(out.reshape(shape[0], shape[1], -1, shape[-1]), bias.astype(x.dtype)).reshape(shape)


def conv2d(channels: int, kernel: tuple[int, int], stride: tuple[int, int], padding: Padding2d) -> nn.Cell:
    """(x [N, C, H, W], weight [channels, C, *kernel], bias or None) -> [N, channels, H', W']; padding with zeros."""
    return _Conv(P.Conv2D(channels, kernel, pad_mode="pad", pad=padding, stride=stride))


def conv3d(channels: int, kernel: tuple[int, int, int], stride: tuple[int, int, int], padding: Padding3d) -> nn.Cell:
    """(x [N, C, T, H, W], weight [channels, C, *kernel], bias or None) -> [N, channels, T', H', W']."""
    return _Conv(P.Conv3D(channels, kernel, pad_mode="pad", pad=padding, stride=stride))


def group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """x [N, C, ...] normalised over each group of channels and all that follows, then weighted and moved by channel."""
    return P.group_norm(x, groups, weight, bias, eps)


def group_norm_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """:func:`group_norm`, then x * sigmoid(x)."""
    x = group_norm(x, weight, bias, groups, eps)
    return x * P.sigmoid(x)


def upsample_nearest(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, 2 H, 2 W]: every pixel four times."""
    n, c, h, w = x.shape
    wide = P.stack((x, x), -1).reshape(n, c, h, 1, 2 * w)
    return P.concat((wide, wide), 3).reshape(n, c, 2 * h, 2 * w)

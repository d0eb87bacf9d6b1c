"""Operators on images and clips of Ascend. Semantics: :mod:`models.ops.cpu_images`."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, mint, nn
from mindspore import ops as P

from models.ops.common import Padding2d, Padding3d


class _Conv2d(nn.Cell):
    def __init__(self, stride: tuple[int, int], padding: Padding2d) -> None:
        super().__init__()
        self.stride = stride
        top, bottom, left, right = padding
        self.even = top == bottom and left == right
        self.inside = (top, left) if self.even else (0, 0)
        self.around = (left, right, top, bottom)

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self.even:
            x = mint.nn.functional.pad(x, self.around)
        bias = None if bias is None else bias.astype(x.dtype)
        return mint.nn.functional.conv2d(x, weight.astype(x.dtype), bias, self.stride, self.inside)


class _Conv3d(nn.Cell):
    def __init__(self, stride: tuple[int, int, int], padding: Padding3d) -> None:
        super().__init__()
        self.stride = stride
        front, back, top, bottom, left, right = padding
        # Zeros in front only are added by themselves; the kernel adds those that are the same on both sides.
        self.even = top == bottom and left == right
        self.inside = (0, top, left) if self.even else (0, 0, 0)
        self.around = (0, 0, 0, 0, front, back) if self.even else (left, right, top, bottom, front, back)
        self.pads = any(self.around)

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.pads:
            x = mint.nn.functional.pad(x, self.around)
        bias = None if bias is None else bias.astype(x.dtype)
        return mint.nn.functional.conv3d(x, weight.astype(x.dtype), bias, self.stride, self.inside)


class _GroupNorm(nn.Cell):
    def __init__(self, groups: int, eps: float, silu: bool) -> None:
        super().__init__()
        self.groups, self.eps, self.silu = groups, eps, silu

    def construct(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        wide, weight, bias = x.astype(ms.float32), weight.astype(ms.float32), bias.astype(ms.float32)
        out = mint.nn.functional.group_norm(wide, self.groups, weight, bias, self.eps).astype(x.dtype)
        return mint.nn.functional.silu(out) if self.silu else out


def conv2d(channels: int, kernel: tuple[int, int], stride: tuple[int, int], padding: Padding2d) -> nn.Cell:
    """Convolution of images; the kernel accumulates in float32."""
    return _Conv2d(stride, padding)


def conv3d(channels: int, kernel: tuple[int, int, int], stride: tuple[int, int, int], padding: Padding3d) -> nn.Cell:
    """Convolution of clips."""
    return _Conv3d(stride, padding)


def group_norm(groups: int, eps: float, silu: bool) -> nn.Cell:
    """Norm by group in float32, whatever x is, and SiLU after it if wanted."""
    return _GroupNorm(groups, eps, silu)


def upsample_nearest(x: Tensor) -> Tensor:
    """Every pixel four times."""
    n, c, h, w = x.shape
    x = P.broadcast_to(x.reshape(n, c, h, 1, w, 1), (n, c, h, 2, w, 2))
    return x.reshape(n, c, 2 * h, 2 * w)


def exp(x: Tensor) -> Tensor:
    """e to the x, in float32 whatever x is."""
    return mint.exp(x.astype(ms.float32)).astype(x.dtype)

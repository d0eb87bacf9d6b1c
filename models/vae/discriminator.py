"""Patch discriminators (Isola et al. 2017): convolutions that tell real frames from reconstructions, patch by patch.

Upstream: opensora/models/vae/discriminator.py. ``NLayerDiscriminator3D`` is that of 2.0 (kernels of 3, dropout),
``NLayerDiscriminator`` the one of 1.2 for single frames (kernels of 4). Parameter names are upstream's, ``main.N.…``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore import ops as P

from models.layers.convolution import Conv2d, Conv3d
from models.layers.linear import parameter
from models.rng import stream

_SLOPE = 0.2
_EPS = 1e-5
_MOMENTUM = 0.1
# Width of the last layers, as a multiple of the first one's, at most.
_WIDEST = 8

# Shape -> factors of dropout: 0, or 1 / (1 - rate).
Mask = Callable[[tuple[int, ...]], np.ndarray]


@dataclass(frozen=True)
class _Kind:
    kernel: int
    strides: tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]  # first, second, later layers
    dropout: float


KINDS = {
    "NLayerDiscriminator3D": _Kind(3, ((2, 2, 2), (2, 2, 2), (1, 2, 2)), 0.3),
    "NLayerDiscriminator": _Kind(4, ((1, 2, 2), (1, 2, 2), (1, 2, 2)), 0.0),
}


class PatchDiscriminator(nn.Cell):
    """x [B, C, T, H, W] in [-1, 1] -> logits [B, 1, t, h, w]; ``NLayerDiscriminator`` takes frames [N, C, H, W].

    n_layers: convolutions that halve; one that does not, and the one that gives logits, follow. In training mode norms
    take the batch's statistics and move the running ones; ``mask`` draws dropout, None switches it off.
    """

    def __init__(self, kind: str, input_nc: int = 3, ndf: int = 64, n_layers: int = 3) -> None:
        super().__init__()
        about = KINDS[kind]
        self.flat = kind == "NLayerDiscriminator"
        self.main = _Main()
        self.dropout = about.dropout
        self.mask: Mask | None = None
        self.main.add(0, self._convolution(about, input_nc, ndf, about.strides[0], bias=True))
        place, width = 2, ndf
        step = 4 if about.dropout else 3
        for layer in range(1, n_layers + 1):
            wider = min(2**layer, _WIDEST) * ndf
            stride = (1, 1, 1) if layer == n_layers else about.strides[min(layer, 2)]
            self.main.add(place, self._convolution(about, width, wider, stride, bias=False))
            self.main.add(place + 1, BatchNorm(wider))
            place, width = place + step, wider
        self.main.add(place, self._convolution(about, width, 1, (1, 1, 1), bias=True))
        for name, param in self.parameters_and_names():
            param.name = name  # layers added by number do not get their prefix

    def _convolution(
        self, about: _Kind, in_channels: int, out_channels: int, stride: tuple[int, int, int], bias: bool
    ) -> nn.Cell:
        if self.flat:
            return Conv2d(in_channels, out_channels, about.kernel, stride[1], padding=1, bias=bias)
        return Conv3d(in_channels, out_channels, (about.kernel,) * 3, stride, (1,) * 6, bias=bias)

    def construct(self, x: Tensor) -> Tensor:
        first, *middle, last = self.main.parts()
        x = _leaky(first(x))
        for convolution, norm in zip(middle[::2], middle[1::2], strict=True):
            x = _leaky(norm(convolution(x)))
            if self.training and self.mask is not None and self.dropout:
                x = x * Tensor(self.mask(tuple(x.shape)), x.dtype)
        return last(x)

    def statistics(self) -> list[Parameter]:
        """Running means and variances of the norms."""
        return [param for param in self.get_parameters() if ".running_" in param.name]


class BatchNorm(nn.Cell):
    """x [N, C, ...] normalised by channel; parameters and statistics as in torch.nn.BatchNorm3d."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = parameter(channels, value=1.0)
        self.bias = parameter(channels)
        self.running_mean = parameter(channels, trainable=False)
        self.running_var = parameter(channels, value=1.0, trainable=False)
        self.num_batches_tracked = Parameter(Tensor(np.zeros((), np.int64)), requires_grad=False)

    def construct(self, x: Tensor) -> Tensor:
        n, c = x.shape[:2]
        # Sums over a batch need full precision, whatever the network computes in.
        flat = x.reshape(n, c, -1).astype(ms.float32)
        if self.training:
            mean, variance = self._moments(flat)
        else:
            mean, variance = self.running_mean, self.running_var
        scale = self.weight.astype(ms.float32) / P.sqrt(variance + _EPS)
        shift = self.bias.astype(ms.float32) - mean * scale
        return (flat * scale.reshape(1, c, 1) + shift.reshape(1, c, 1)).reshape(x.shape).astype(x.dtype)

    def _moments(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance [C]; moves the running ones, with the unbiased variance."""
        n, _, rest = flat.shape
        count = n * rest
        ones = P.ones((rest, 1), flat.dtype)
        mean = P.matmul(flat, ones).sum(0).reshape(-1) / count
        centred = flat - mean.reshape(1, -1, 1)
        variance = P.matmul(centred * centred, ones).sum(0).reshape(-1) / count
        unbiased = variance * (count / max(count - 1, 1))
        for running, value in ((self.running_mean, mean), (self.running_var, unbiased)):
            P.assign(running, running * (1 - _MOMENTUM) + P.stop_gradient(value) * _MOMENTUM)
        P.assign(self.num_batches_tracked, self.num_batches_tracked + 1)
        return mean, variance


class _Main(nn.Cell):
    """Numbered layers; numbers without parameters (activations, dropout) are left out."""

    def add(self, number: int, layer: nn.Cell) -> None:
        self.insert_child_to_cell(str(number), layer)

    def parts(self) -> list[nn.Cell]:
        return list(self._cells.values())


def _leaky(x: Tensor) -> Tensor:
    return P.relu(x) * (1 - _SLOPE) + x * _SLOPE


def build_discriminator(kind: str, ndf: int, n_layers: int, seed: int) -> PatchDiscriminator:
    """A new one: convolutions normal with deviation 0.02, factors of norms normal around 1 (upstream's start)."""
    model = PatchDiscriminator(kind, 3, ndf, n_layers)
    for prefix, cell in model.cells_and_names():
        if isinstance(cell, Conv2d | Conv3d | BatchNorm):
            middle = 1.0 if isinstance(cell, BatchNorm) else 0.0
            draws = stream(seed, "discriminator weights", prefix).standard_normal(tuple(cell.weight.shape), np.float32)
            cell.weight.set_data(Tensor(draws * np.float32(0.02) + np.float32(middle), ms.float32))
    return model

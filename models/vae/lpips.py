"""LPIPS, a perceptual distance of pictures (Zhang et al. 2018). Upstream: opensora/models/vae/lpips.py.

Features of VGG16 at five depths are normalised over channels; squared differences are weighted by channel, averaged
over the picture and added up. Parameter names are upstream's: ``net.slice1.0.weight`` … with the numbers of
torchvision's ``features``, ``lin0.model.1.weight`` …, ``scaling_layer.shift`` and ``scale``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore import ops as P

from models.exits import BAD_CHECKPOINT, PayloadError
from models.layers.convolution import Conv2d
from models.rng import stream
from models.weights import load_state_dict

VGG_CHANNELS = (64, 128, 256, 512, 512)
# Numbers of the convolutions of each slice in torchvision's VGG16 ``features``.
SLICES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
# Mean and deviation of ImageNet's pictures in [-1, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPS = 1e-10
# Below this a sum of squares counts as none: the root's slope there is infinite.
_TINY = 1e-30


class LPIPS(nn.Cell):
    """a, b [N, 3 or 1, H, W] in [-1, 1] -> distance [N, 1, 1, 1], float32. Frozen; gradients flow to both pictures.

    Sides of 16 pixels at least: pictures are halved four times.
    """

    def __init__(self, channels: Sequence[int] = VGG_CHANNELS) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.scaling_layer = _Scaling()
        self.net = _Vgg(self.channels)
        self.lins = []
        for number, width in enumerate(self.channels):
            lin = _Lin(width)
            self.insert_child_to_cell(f"lin{number}", lin)
            self.lins.append(lin)
        for name, param in self.parameters_and_names():
            param.name, param.requires_grad = name, False  # layers added by number do not get their prefix
        self.set_train(False)

    def features(self, x: Tensor) -> list[Tensor]:
        """Outputs of the five slices: [N, C_k, H / 2^k, W / 2^k]."""
        return self.net(self.scaling_layer(x))

    def layers(self, a: Tensor, b: Tensor) -> list[Tensor]:
        """The five summands, each [N, 1, 1, 1]."""
        first, second, found = self.features(a), self.features(b), []
        # By number: the graph compiler knows no keywords of zip().
        for number in range(len(self.lins)):
            found.append(self.lins[number](_normalized(first[number]), _normalized(second[number])))
        return found

    def construct(self, a: Tensor, b: Tensor) -> Tensor:
        if min(a.shape[-2:]) < 16:
            raise ValueError(f"LPIPS needs pictures of 16 pixels a side, got {a.shape[-2]}x{a.shape[-1]}")
        found = self.layers(a.astype(ms.float32), b.astype(ms.float32))
        total = found[0]
        for number in range(1, len(found)):
            total = total + found[number]
        return total


class _Scaling(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.shift = Parameter(Tensor(np.array(_SHIFT, np.float32).reshape(1, 3, 1, 1)))
        self.scale = Parameter(Tensor(np.array(_SCALE, np.float32).reshape(1, 3, 1, 1)))

    def construct(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale


class _Slice(nn.Cell):
    """Convolutions of 3 x 3, each with a ReLU, numbered as in torchvision; pooled first but in the first slice."""

    def __init__(self, numbers: Sequence[int], in_channels: int, out_channels: int, pool: bool) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2, 2, "valid") if pool else None
        self.convolutions = []
        for number in numbers:
            convolution = Conv2d(in_channels, out_channels, 3, padding=1)
            self.insert_child_to_cell(str(number), convolution)
            self.convolutions.append(convolution)
            in_channels = out_channels

    def construct(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = self.pool(x)
        for convolution in self.convolutions:
            x = P.relu(convolution(x))
        return x


class _Vgg(nn.Cell):
    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.slices = []
        before = 3
        for place, (numbers, width) in enumerate(zip(SLICES, channels, strict=True)):
            part = _Slice(numbers, before, width, pool=place > 0)
            self.insert_child_to_cell(f"slice{place + 1}", part)
            self.slices.append(part)
            before = width

    def construct(self, x: Tensor) -> list[Tensor]:
        found = []
        for part in self.slices:
            x = part(x)
            found.append(x)
        return found


class _LinModel(nn.Cell):
    """Holds the weight under the name it has upstream: dropout is number 0, the 1 x 1 convolution number 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = [Conv2d(width, 1, 1, bias=False)]
        self.insert_child_to_cell("1", self.layers[0])


class _Lin(nn.Cell):
    """Normalised features [N, C, H, W] of two pictures -> mean of the weighted squared differences [N, 1, 1, 1]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.model = _LinModel(width)

    def construct(self, a: Tensor, b: Tensor) -> Tensor:
        n, c, h, w = a.shape
        # Sums over an axis as products with vectors: several times faster on CPU.
        pixels = P.matmul(((a - b) ** 2).reshape(n, c, h * w), P.fill(ms.float32, (h * w, 1), 1.0 / (h * w)))
        return P.matmul(self.model.layers[0].weight.reshape(1, c), pixels).reshape(n, 1, 1, 1)


def _normalized(x: Tensor) -> Tensor:
    """x [N, C, H, W] / (length over channels + 1e-10)."""
    n, c, h, w = x.shape
    flat = x.reshape(n, c, h * w)
    squares = P.bmm(P.ones((n, 1, c), x.dtype), flat * flat)
    inverse = 1.0 / (P.sqrt(P.maximum(squares, _TINY)) + _EPS)
    return (flat * P.bmm(P.ones((n, c, 1), x.dtype), inverse)).reshape(x.shape)


def from_weights(weights: Mapping[str, np.ndarray], where: str) -> LPIPS:
    """LPIPS with the channel counts of ``weights``: upstream's names, or torchvision's VGG16 with ``lin…`` beside it.

    PayloadError(BAD_CHECKPOINT) names what is missing. where: the files, for the message.
    """
    state = {_own_name(name): value for name, value in weights.items()}
    for place, constant in (("shift", _SHIFT), ("scale", _SCALE)):
        state.setdefault(f"scaling_layer.{place}", np.array(constant, np.float32).reshape(1, 3, 1, 1))
    known = {name: value for name, value in state.items() if name.startswith(("net.", "lin", "scaling_layer."))}
    firsts = [f"net.slice{place + 1}.{numbers[0]}.weight" for place, numbers in enumerate(SLICES)]
    missing = [name for name in (*firsts, *(f"lin{place}.model.1.weight" for place in range(5))) if name not in known]
    if missing:
        raise PayloadError(
            BAD_CHECKPOINT,
            f"LPIPS weights are incomplete: {len(missing)} tensors are missing",
            where=where,
            why=", ".join(missing[:5]),
            next_step="name torchvision's VGG16 in perceptual.vgg and LPIPS's lin weights (vgg.pth) in perceptual.lin",
        )
    model = LPIPS([known[name].shape[0] for name in firsts])
    load_state_dict(model, known)
    return model


def random_features(channels: Sequence[int], seed: int) -> LPIPS:
    """A fixed network of random features in the place of VGG16: He's initial weights, all channels weighted alike."""
    model = LPIPS(channels)
    for name, param in model.parameters_and_names():
        shape = tuple(param.shape)
        if name.startswith("lin"):
            value = np.full(shape, 1.0 / shape[1], np.float32)
        elif name.endswith(".weight"):
            deviation = np.float32(math.sqrt(2.0 / math.prod(shape[1:])))
            value = stream(seed, "random features", name).standard_normal(shape, np.float32) * deviation
        else:
            continue
        param.set_data(Tensor(value))
    return model


def _own_name(name: str) -> str:
    """``features.10.weight`` of torchvision -> ``net.slice3.10.weight``."""
    parts = name.split(".")
    if parts[0] != "features" or len(parts) != 3 or not parts[1].isdigit():
        return name
    place = next((place for place, numbers in enumerate(SLICES) if int(parts[1]) in numbers), None)
    return name if place is None else f"net.slice{place + 1}.{parts[1]}.{parts[2]}"

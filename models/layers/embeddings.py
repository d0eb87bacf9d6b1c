"""Embeddings of timesteps, sizes, captions, patches and positions. Upstream: opensora/models/layers/blocks.py, v1.2."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn
from mindspore import ops as P

from models import ops
from models.layers.linear import Linear, Mlp, SiLU, parameter
from models.layers.tables import inverse_frequencies, timestep_frequencies

FEATURES = 256


def sine_features(values: Tensor, frequencies: Tensor, odd: bool = False) -> Tensor:
    """values [N], frequencies [half] -> float32 [N, 2 half (+ 1)]: cosines, sines, and a zero column if ``odd``."""
    angles = values.astype(ms.float32).reshape(-1, 1) * frequencies.reshape(1, -1)
    parts = [P.cos(angles), P.sin(angles)]
    if odd:
        parts.append(P.zeros((angles.shape[0], 1), ms.float32))
    return P.concat(tuple(parts), -1)


class TimestepEmbedder(nn.Cell):
    """Scalars [N] -> [N, hidden] in ``dtype``: sine features through a two-layer perceptron."""

    def __init__(self, hidden_size: int, dtype: ms.Type = ms.float32) -> None:
        super().__init__()
        self.mlp = nn.SequentialCell(
            Linear(FEATURES, hidden_size, first=True), SiLU(), Linear(hidden_size, hidden_size)
        )
        self.frequencies = Tensor(timestep_frequencies(FEATURES // 2))
        self.dtype = dtype

    def construct(self, values: Tensor) -> Tensor:
        return self.mlp(sine_features(values, self.frequencies).astype(self.dtype))


class SizeEmbedder(TimestepEmbedder):
    """Scalars [b, d] or [b] -> [batch, d * hidden]; rows repeat in turn where ``batch`` is a multiple of b."""

    def construct(self, values: Tensor, batch: int) -> Tensor:
        if values.ndim == 1:
            values = values.reshape(-1, 1)
        if values.shape[0] != batch:
            values = P.tile(values, (batch // values.shape[0], 1))
        embedded = self.mlp(sine_features(values.reshape(-1), self.frequencies).astype(self.dtype))
        return embedded.reshape(batch, -1)


class CaptionEmbedder(nn.Cell):
    """Captions [B, 1, L, channels] -> [B, 1, L, hidden]; rows with drop id 1 become the null caption first.

    ``y_embedding`` [tokens, channels] is fixed (a buffer in the original), never trained.
    """

    def __init__(self, channels: int, hidden_size: int, tokens: int) -> None:
        super().__init__()
        self.y_proj = Mlp(channels, hidden_size, hidden_size, first=True)
        self.y_embedding = parameter(tokens, channels, trainable=False)

    def construct(self, captions: Tensor, drop_ids: Tensor | None = None) -> Tensor:
        if drop_ids is not None:
            null = self.y_embedding.astype(captions.dtype).reshape((1, 1, *self.y_embedding.shape))
            captions = P.where((drop_ids == 1).reshape(-1, 1, 1, 1), null, captions)
        return self.y_proj(captions)


class PatchProjection(nn.Cell):
    """Holds the patch convolution's ``weight`` [hidden, channels, pt, ph, pw] and ``bias`` [hidden]."""

    def __init__(self, patch: tuple[int, int, int], channels: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = parameter(hidden_size, channels, *patch)
        self.bias = parameter(hidden_size)
        self.first = True
        self.source = None
        self._linear = ops.linear

    def construct(self, patches: Tensor) -> Tensor:
        if self.source is not None:
            return self.source(patches)
        return self._linear(patches, self.weight.reshape(self.weight.shape[0], -1), self.bias)


def zero_pad(x: Tensor, axis: int, multiple: int) -> Tensor:
    """x with zeros after the end of ``axis`` up to the next multiple."""
    short = -x.shape[axis] % multiple
    if short == 0:
        return x
    shape = x.shape[:axis] + (short,) + x.shape[axis + 1 :]
    return P.concat((x, P.zeros(shape, x.dtype)), axis)


class PatchEmbed3D(nn.Cell):
    """x [B, C, T, H, W] -> [B, tokens, hidden] in (t, h, w) order; sides are zero-padded to the patch.

    The convolution's kernel equals its stride, so it is one matrix product over patches on every device.
    """

    def __init__(self, patch: tuple[int, int, int], channels: int, hidden_size: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = PatchProjection(patch, channels, hidden_size)

    def construct(self, x: Tensor) -> Tensor:
        patches = self.patches(x)
        return self.proj(patches.reshape(patches.shape[0], -1, patches.shape[-1]))

    def patches(self, x: Tensor) -> Tensor:
        """x [B, C, T, H, W] -> [B, t, h * w, C * patch volume]."""
        pt, ph, pw = self.patch
        x = zero_pad(zero_pad(zero_pad(x, 4, pw), 3, ph), 2, pt)
        b, c, t, h, w = x.shape
        x = x.reshape(b, c, t // pt, pt, h // ph, ph, w // pw, pw)
        return x.transpose(0, 2, 4, 6, 1, 3, 5, 7).reshape(b, t // pt, -1, c * pt * ph * pw)


class PositionTable2D(nn.Cell):
    """Sine-cosine table of spatial positions, [1, h * w, dim] float32; its first half belongs to the column.

    Positions are divided by ``scale`` and spread so that ``base`` positions cover each side.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.frequencies = Tensor(inverse_frequencies(dim // 4))

    def _side(self, count: int, scale: Tensor | float, base: int | None) -> Tensor:
        positions = P.arange(0, count, 1).astype(ms.float32) / scale
        if base is not None:
            positions = positions * (base / count)
        angles = positions.reshape(-1, 1) * self.frequencies.reshape(1, -1)
        return P.concat((P.sin(angles), P.cos(angles)), -1)

    def construct(self, h: int, w: int, scale: Tensor | float, base: int | None = None) -> Tensor:
        rows = self._side(h, scale, base)
        columns = self._side(w, scale, base)
        width = rows.shape[-1]
        columns = P.broadcast_to(columns.reshape(1, w, width), (h, w, width))
        rows = P.broadcast_to(rows.reshape(h, 1, width), (h, w, width))
        return P.concat((columns, rows), -1).reshape(1, h * w, 2 * width)

"""Modulation by the time embedding (adaLN-single, PixArt-alpha) and the output layer.

Frames with ``x_mask`` False are conditioning frames and take the modulation of timestep zero. Choosing per frame among
the small modulation vectors gives the same numbers as modulating everything twice and choosing among the results.
"""

from __future__ import annotations

from mindspore import Tensor, nn
from mindspore import ops as P

from models import ops
from models.layers.linear import Linear, parameter


def modulation(table: Tensor, t: Tensor, t0: Tensor | None, x_mask: Tensor | None) -> tuple[Tensor, ...]:
    """table [k, C], t and t0 [B, k, C] or [B, 1, C], x_mask bool [B, T] -> k tensors [B, T or 1, 1, C]."""
    count, width = table.shape
    table = table.astype(t.dtype).reshape(1, count, width)
    values = (table + t).reshape(-1, 1, count, width)
    if x_mask is not None:
        zero = (table + t0).reshape(-1, 1, count, width)
        values = P.where(x_mask.reshape(x_mask.shape[0], x_mask.shape[1], 1, 1), values, zero)
    return P.split(values, 1, axis=2)


class FinalLayer(nn.Cell):
    """x [B, T * S, C], time embedding t [B, C] -> [B, T * S, patch volume * channels]. Upstream: T2IFinalLayer.

    For conditioning frames the original normalises and modulates what it has already modulated with ``t``, not the
    layer's input; published weights were trained with that, so it is kept.
    """

    def __init__(self, hidden_size: int, patch_volume: int, out_channels: int) -> None:
        super().__init__()
        self.linear = Linear(hidden_size, patch_volume * out_channels)
        self.scale_shift_table = parameter(2, hidden_size)
        self.source = None
        self._norm_modulate = ops.norm_modulate

    def construct(
        self, x: Tensor, t: Tensor, x_mask: Tensor | None = None, t0: Tensor | None = None, frames: int = 1
    ) -> Tensor:
        b, n, c = x.shape
        table = self.scale_shift_table if self.source is None else self.source("scale_shift_table")
        shift, scale = modulation(table, t.reshape(-1, 1, c), None, None)
        x = self._norm_modulate(x.reshape(b, frames, n // frames, c), shift, scale)
        if x_mask is not None:
            shift, scale = modulation(table, t0.reshape(-1, 1, c), None, None)
            zero = self._norm_modulate(x, shift, scale)
            x = P.where(x_mask.reshape(b, frames, 1, 1), x, zero)
        return self.linear(x.reshape(b, n, c))

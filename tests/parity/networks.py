"""The networks of v1.0 and v1.1 that the IDDPM cases were recorded with, put together from our layers.

STDiT (v1.0): a fixed size; the temporal attention sees the residual stream as it is and shares the spatial gate. STDiT2
(v1.1): any size; space is modulated by time, size and ratio, time by time, length and rate. Parameter names are the
original state-dict keys.
"""

from __future__ import annotations

import math
from typing import Any

import mindspore as ms
from mindspore import Tensor, nn
from mindspore import ops as P

from models import ops
from models.layers.attention import Attention, CrossAttention, RotaryTable, mask_bias
from models.layers.embeddings import CaptionEmbedder, PatchEmbed3D, PositionTable2D, SizeEmbedder, TimestepEmbedder
from models.layers.linear import Linear, Mlp, SiLU, parameter
from models.layers.modulation import FinalLayer, modulation

Init = dict[str, Any]


def _projection(hidden: int, count: int) -> nn.SequentialCell:
    return nn.SequentialCell(SiLU(), Linear(hidden, count * hidden))


def _over_space(attention: Attention, x: Tensor) -> Tensor:
    b, t, s, c = x.shape
    return attention(x.reshape(b * t, s, c)).reshape(b, t, s, c)


def _over_time(attention: Attention, x: Tensor, rope: tuple[Tensor, Tensor] | None = None) -> Tensor:
    b, t, s, c = x.shape
    x = x.transpose(0, 2, 1, 3).reshape(b * s, t, c)
    return attention(x, rope).reshape(b, s, t, c).transpose(0, 2, 1, 3)


class Network(nn.Cell):
    """What both have in common. x [B, C, T, H, W], timestep [B], y [B, 1, L, channels], mask [b, L]."""

    def __init__(self, init: Init) -> None:
        super().__init__()
        self.hidden = init["hidden_size"]
        self.patch = tuple(init["patch_size"])
        self.out_channels = init["in_channels"] * (2 if init["pred_sigma"] else 1)
        self.x_embedder = PatchEmbed3D(self.patch, init["in_channels"], self.hidden)
        self.t_embedder = TimestepEmbedder(self.hidden)
        self.t_block = _projection(self.hidden, 6)
        self.y_embedder = CaptionEmbedder(init["caption_channels"], self.hidden, init["model_max_length"])
        self.final_layer = FinalLayer(self.hidden, math.prod(self.patch), self.out_channels)

    def text(self, y: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        y = self.y_embedder(y).reshape(y.shape[0], -1, self.hidden)
        if mask is None:
            return y, None
        if mask.shape[0] != y.shape[0]:
            mask = P.tile(mask, (y.shape[0] // mask.shape[0], 1))
        return y, mask_bias(mask)

    def tokens(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        return self.x_embedder(x).reshape(x.shape[0], grid[0], -1, self.hidden)

    def unpatchify(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        x = x.reshape(x.shape[0], *grid, *self.patch, self.out_channels).transpose(0, 7, 1, 4, 2, 5, 3, 6)
        sides = [count * size for count, size in zip(grid, self.patch, strict=True)]
        return x.reshape(x.shape[0], self.out_channels, *sides)

    def grid(self, x: Tensor) -> tuple[int, int, int]:
        t, h, w = (-(-side // size) for side, size in zip(x.shape[2:], self.patch, strict=True))
        return t, h, w


class STDiTBlock(nn.Cell):
    def __init__(self, hidden: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attn = Attention(hidden, heads)
        self.attn_temp = Attention(hidden, heads)
        self.cross_attn = CrossAttention(hidden, heads)
        self.mlp = Mlp(hidden, int(hidden * mlp_ratio), hidden)
        self.scale_shift_table = parameter(6, hidden)

    def construct(self, x: Tensor, y: Tensor, t: Tensor, text_bias: Tensor | None, positions: Tensor | None) -> Tensor:
        b, frames, spatial, c = x.shape
        table = t.reshape(b, 6, c)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation(self.scale_shift_table, table, None, None)
        x = x + gate_a * _over_space(self.attn, ops.norm_modulate(x, shift_a, scale_a))
        temporal = x if positions is None else x + positions.reshape(1, frames, 1, c)
        x = x + gate_a * _over_time(self.attn_temp, temporal)
        x = x + self.cross_attn(x.reshape(b, -1, c), y, text_bias).reshape(b, frames, spatial, c)
        return x + gate_m * self.mlp(ops.norm_modulate(x, shift_m, scale_m))


class STDiT(Network):
    """Open-Sora 1.0. The position tables are part of its state."""

    def __init__(self, init: Init) -> None:
        super().__init__(init)
        sides = [side // size for side, size in zip(init["input_size"], init["patch_size"], strict=True)]
        self.pos_embed = parameter(1, sides[1] * sides[2], self.hidden, trainable=False)
        self.pos_embed_temporal = parameter(1, sides[0], self.hidden, trainable=False)
        blocks = [STDiTBlock(self.hidden, init["num_heads"], init["mlp_ratio"]) for _ in range(init["depth"])]
        self.blocks = nn.CellList(blocks)

    def construct(self, x: Tensor, timestep: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        grid = self.grid(x)
        t = self.t_embedder(timestep.astype(ms.float32))
        t_mlp = self.t_block(t)
        y, text_bias = self.text(y, mask)
        x = self.tokens(x, grid) + self.pos_embed.expand_dims(1)
        for index, block in enumerate(self.blocks):
            x = block(x, y, t_mlp, text_bias, self.pos_embed_temporal if index == 0 else None)
        return self.unpatchify(self.final_layer(x.reshape(x.shape[0], -1, self.hidden), t), grid)


class STDiT2Block(nn.Cell):
    def __init__(self, hidden: int, heads: int, mlp_ratio: float, qk_norm: bool) -> None:
        super().__init__()
        self.attn = Attention(hidden, heads, qk_norm=qk_norm, norm_last=True)
        self.attn_temp = Attention(hidden, heads, qk_norm=qk_norm, rope=True, norm_last=True)
        self.cross_attn = CrossAttention(hidden, heads)
        self.mlp = Mlp(hidden, int(hidden * mlp_ratio), hidden)
        self.scale_shift_table = parameter(6, hidden)
        self.scale_shift_table_temporal = parameter(3, hidden)

    def construct(
        self,
        x: Tensor,
        y: Tensor,
        times: tuple[Tensor, Tensor],
        times0: tuple[Tensor, Tensor] | None,
        text_bias: Tensor | None,
        x_mask: Tensor | None,
        rope: tuple[Tensor, Tensor],
    ) -> Tensor:
        b, frames, spatial, c = x.shape
        space0, time0 = (None, None) if times0 is None else (times0[0].reshape(b, 6, c), times0[1].reshape(b, 3, c))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation(
            self.scale_shift_table, times[0].reshape(b, 6, c), space0, x_mask
        )
        shift_t, scale_t, gate_t = modulation(self.scale_shift_table_temporal, times[1].reshape(b, 3, c), time0, x_mask)
        x = x + gate_a * _over_space(self.attn, ops.norm_modulate(x, shift_a, scale_a))
        x = x + gate_t * _over_time(self.attn_temp, ops.norm_modulate(x, shift_t, scale_t), rope)
        x = x + self.cross_attn(x.reshape(b, -1, c), y, text_bias).reshape(b, frames, spatial, c)
        return x + gate_m * self.mlp(ops.norm_modulate(x, shift_m, scale_m))


class STDiT2(Network):
    """Open-Sora 1.1. height, width, ar, num_frames and fps are float [b]."""

    def __init__(self, init: Init) -> None:
        super().__init__(init)
        hidden, heads = self.hidden, init["num_heads"]
        self.input_sq_size = float(init["input_sq_size"])
        self.pos_embed = PositionTable2D(hidden)
        self.rope = RotaryTable(hidden // heads)
        self.t_block_temp = _projection(hidden, 3)
        self.csize_embedder = SizeEmbedder(hidden // 3)
        self.ar_embedder = SizeEmbedder(hidden // 3)
        self.fl_embedder = SizeEmbedder(hidden)
        self.fps_embedder = SizeEmbedder(hidden)
        blocks = [STDiT2Block(hidden, heads, init["mlp_ratio"], init["qk_norm"]) for _ in range(init["depth"])]
        self.blocks = nn.CellList(blocks)

    def construct(
        self,
        x: Tensor,
        timestep: Tensor,
        y: Tensor,
        mask: Tensor | None = None,
        x_mask: Tensor | None = None,
        num_frames: Tensor | None = None,
        height: Tensor | None = None,
        width: Tensor | None = None,
        ar: Tensor | None = None,
        fps: Tensor | None = None,
    ) -> Tensor:
        batch, size, grid = x.shape[0], x.shape[2:], self.grid(x)
        spatial = grid[1] * grid[2]
        scale = P.sqrt(height[0] * width[0]) / self.input_sq_size
        positions = self.pos_embed(grid[1], grid[2], scale, round(spatial**0.5))
        shape = P.concat((self.csize_embedder(P.stack((height, width), 1), batch), self.ar_embedder(ar, batch)), 1)
        length = self.fl_embedder(num_frames, batch) + self.fps_embedder(fps, batch)
        timestep = timestep.astype(ms.float32)
        t = self.t_embedder(timestep)
        times, times0, shape0 = (self.t_block(t + shape), self.t_block_temp(t + length)), None, None
        if x_mask is not None:
            t0 = self.t_embedder(P.zeros_like(timestep))
            shape0 = t0 + shape
            times0 = (self.t_block(shape0), self.t_block_temp(t0 + length))
        y, text_bias = self.text(y, mask)
        x = self.tokens(x, grid) + positions.reshape(1, 1, spatial, self.hidden)
        rope = self.rope(grid[0])
        for block in self.blocks:
            x = block(x, y, times, times0, text_bias, x_mask, rope)
        x = self.final_layer(x.reshape(batch, -1, self.hidden), t, x_mask, shape0, grid[0])
        return self.unpatchify(x, grid)[:, :, : size[0], : size[1], : size[2]]

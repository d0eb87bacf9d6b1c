"""STDiT2 (Open-Sora 1.1): latents of any size, told their size, ratio, length and rate.

Upstream: opensora/models/stdit/stdit2.py, branch opensora/v1.1. Space is modulated by time, size and ratio, time by
time, length and rate. Queries and keys are rotated first and normalised after.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Tensor, nn
from mindspore import ops as P

from models import ops
from models.config import ModelConfig
from models.layers.attention import Attention, CrossAttention, RotaryTable
from models.layers.embeddings import PositionTable2D, SizeEmbedder
from models.layers.linear import Mlp, parameter
from models.layers.modulation import modulation
from models.stdit.base import Block, Transformer, scaled_positions, time_projection


class STDiT2Block(Block):
    """Modulated attention over space, then over time, cross attention to text, modulated perceptron."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, heads = config.hidden_size, config.num_heads
        self.attn = Attention(hidden, heads, qk_norm=config.qk_norm, norm_last=True)
        self.attn_temp = Attention(hidden, heads, qk_norm=config.qk_norm, rope=True, norm_last=True)
        self.cross_attn = CrossAttention(hidden, heads)
        self.mlp = Mlp(hidden, int(hidden * config.mlp_ratio), hidden)
        self.scale_shift_table = parameter(6, hidden)
        self.scale_shift_table_temporal = parameter(3, hidden)
        self._norm_modulate = ops.norm_modulate
        self._gate_add = ops.gate_add

    def share_tokens(self, sequence: Any) -> None:
        """Ranks hold parts of a sample from here on (:func:`models.parallel.sequence.divide`)."""
        if sequence.axis == 1:
            self.frames_exchange = sequence
        else:
            self.attn.heads_exchange = sequence

    def construct(
        self,
        x: Tensor,
        y: Tensor,
        t: Tensor,
        text_bias: Tensor | None,
        x_mask: Tensor | None,
        t0: Tensor | None,
        positions: tuple[Tensor, Tensor],
        frames: int,
    ) -> Tensor:
        """See :class:`models.stdit.base.Block`: k is 9, six vectors for space and perceptron, then three for time."""
        b, n, c = x.shape
        space, time = t[:, : 6 * c].reshape(b, 6, c), t[:, 6 * c :].reshape(b, 3, c)
        space0, time0 = None, None
        if t0 is not None:
            space0, time0 = t0[:, : 6 * c].reshape(b, 6, c), t0[:, 6 * c :].reshape(b, 3, c)
        table, temporal = self.scale_shift_table, self.scale_shift_table_temporal
        if self.source is not None:
            table, temporal = self.source("scale_shift_table"), self.source("scale_shift_table_temporal")
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation(table, space, space0, x_mask)
        shift_t, scale_t, gate_t = modulation(temporal, time, time0, x_mask)
        x = x.reshape(b, frames, n // frames, c)
        x = self._gate_add(x, gate_a, self.over_space(self.attn, self._norm_modulate(x, shift_a, scale_a)))
        attended = self.over_time(self.attn_temp, self._norm_modulate(x, shift_t, scale_t), positions)
        x = self._gate_add(x, gate_t, attended).reshape(b, n, c)
        x = (x + self.cross_attn(x, y, text_bias)).reshape(b, frames, n // frames, c)
        x = self._gate_add(x, gate_m, self.mlp(self._norm_modulate(x, shift_m, scale_m)))
        return x.reshape(b, n, c)


class STDiT2(Transformer):
    """Wants fps, height, width, num_frames and ar."""

    first = (
        "x_embedder.", "t_embedder.", "csize_embedder.", "ar_embedder.", "fl_embedder.", "fps_embedder.", "t_block.",
        "t_block_temp.", "y_embedder.",
    )  # fmt: skip

    def __init__(self, config: ModelConfig, dtype: str = "fp32") -> None:
        super().__init__(config, dtype)
        hidden = config.hidden_size
        self.input_sq_size = float(config.input_sq_size)
        self.pos_embed = PositionTable2D(hidden)
        self.rope = RotaryTable(hidden // config.num_heads)
        self.t_block_temp = time_projection(hidden, 3)
        self.csize_embedder = SizeEmbedder(hidden // 3, self.dtype)
        self.ar_embedder = SizeEmbedder(hidden // 3, self.dtype)
        self.fl_embedder = SizeEmbedder(hidden, self.dtype)
        self.fps_embedder = SizeEmbedder(hidden, self.dtype)
        self.blocks = nn.CellList([STDiT2Block(config) for _ in range(config.depth)])
        self.freeze()

    def space_positions(self, grid: tuple[int, int, int], height: Tensor, width: Tensor) -> Tensor:
        return scaled_positions(self.pos_embed, grid, height, width, self.input_sq_size)

    def time_positions(self, frames: int) -> tuple[Tensor, Tensor]:
        return self.rope(frames)

    def conditions(
        self, batch: int, fps: Tensor, height: Tensor, width: Tensor, num_frames: Tensor, ar: Tensor
    ) -> Tensor:
        """[B, 2 hidden]: height, width and ratio for space; length and rate for time."""
        sides = P.concat((height.reshape(-1, 1), width.reshape(-1, 1)), 1).astype(ms.float32)
        shape = P.concat((self.csize_embedder(sides, batch), self.ar_embedder(ar, batch)), 1)
        length = self.fl_embedder(num_frames, batch) + self.fps_embedder(fps, batch)
        return P.concat((shape, length), 1)

    def times(self, timestep: Tensor, conditions: Tensor, conditioning: bool = False) -> tuple[Tensor, Tensor]:
        """What modulates blocks [B, 9 hidden] and the final layer [B, hidden].

        The final layer sees size and ratio for conditioning frames only: as in the original.
        """
        t = self.t_embedder(timestep)
        space = t + conditions[:, : self.hidden_size]
        time = t + conditions[:, self.hidden_size :]
        vectors = P.concat((self.t_block(space), self.t_block_temp(time)), 1)
        return vectors, (space if conditioning else t)

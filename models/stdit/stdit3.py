"""STDiT3 (Open-Sora 1.2): blocks over space and blocks over time in turn, rotary positions along time.

Upstream: opensora/models/stdit/stdit3.py, branch opensora/v1.2.
"""

from __future__ import annotations

from typing import Any

from mindspore import Tensor, nn

from models import ops
from models.config import ModelConfig
from models.layers.attention import Attention, CrossAttention, RotaryTable
from models.layers.embeddings import PositionTable2D, SizeEmbedder
from models.layers.linear import Mlp, parameter
from models.layers.modulation import modulation
from models.stdit.base import Block, Transformer, scaled_positions


class STDiT3Block(Block):
    """Modulated self attention over space or time, cross attention to text, modulated perceptron."""

    def __init__(self, config: ModelConfig, temporal: bool) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.temporal = temporal
        self.attn = Attention(hidden, config.num_heads, qk_norm=config.qk_norm, rope=temporal)
        self.cross_attn = CrossAttention(hidden, config.num_heads)
        self.mlp = Mlp(hidden, int(hidden * config.mlp_ratio), hidden)
        self.scale_shift_table = parameter(6, hidden)
        self._norm_modulate = ops.norm_modulate
        self._gate_add = ops.gate_add

    def share_tokens(self, sequence: Any) -> None:
        """Ranks hold parts of a sample from here on (:func:`models.parallel.sequence.divide`)."""
        if sequence.axis == 1:
            self.frames_exchange = sequence if self.temporal else None
        elif not self.temporal:
            self.attn.heads_exchange = self.cross_attn.heads_exchange = sequence

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
        """See :class:`models.stdit.base.Block`: k is 6, positions are the rotary table."""
        b, n, c = x.shape
        zero = None if t0 is None else t0.reshape(-1, 6, c)
        table = self.scale_shift_table if self.source is None else self.source("scale_shift_table")
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation(table, t.reshape(-1, 6, c), zero, x_mask)
        x = x.reshape(b, frames, n // frames, c)
        attended = self._norm_modulate(x, shift_a, scale_a)
        if self.temporal:
            attended = self.over_time(self.attn, attended, positions)
        else:
            attended = self.over_space(self.attn, attended)
        x = self._gate_add(x, gate_a, attended).reshape(b, n, c)
        x = (x + self.cross_attn(x, y, text_bias)).reshape(b, frames, n // frames, c)
        x = self._gate_add(x, gate_m, self.mlp(self._norm_modulate(x, shift_m, scale_m)))
        return x.reshape(b, n, c)


class STDiT3(Transformer):
    """Latents of any size. Wants fps, height and width."""

    first = ("x_embedder.", "t_embedder.", "fps_embedder.", "t_block.", "y_embedder.")

    def __init__(self, config: ModelConfig, dtype: str = "fp32") -> None:
        super().__init__(config, dtype)
        hidden = config.hidden_size
        self.input_sq_size = float(config.input_sq_size)
        self.pos_embed = PositionTable2D(hidden)
        self.rope = RotaryTable(hidden // config.num_heads)
        self.fps_embedder = SizeEmbedder(hidden, self.dtype)
        self.spatial_blocks = nn.CellList([STDiT3Block(config, temporal=False) for _ in range(config.depth)])
        self.temporal_blocks = nn.CellList([STDiT3Block(config, temporal=True) for _ in range(config.depth)])
        self.freeze()

    def space_positions(self, grid: tuple[int, int, int], height: Tensor, width: Tensor) -> Tensor:
        return scaled_positions(self.pos_embed, grid, height, width, self.input_sq_size)

    def time_positions(self, frames: int) -> tuple[Tensor, Tensor]:
        return self.rope(frames)

    def conditions(
        self, batch: int, fps: Tensor, height: Tensor, width: Tensor, num_frames: Tensor | None, ar: Tensor | None
    ) -> Tensor:
        """Embedded frames a second, [B, hidden]: all this model knows of a video."""
        return self.fps_embedder(fps.reshape(-1, 1), batch)

    def times(self, timestep: Tensor, conditions: Tensor, conditioning: bool = False) -> tuple[Tensor, Tensor]:
        """What modulates blocks [B, 6 hidden] and the final layer [B, hidden]."""
        t = self.t_embedder(timestep) + conditions
        return self.t_block(t), t

    def blocks_in_order(self) -> list[Any]:
        return [block for pair in zip(self.spatial_blocks, self.temporal_blocks, strict=True) for block in pair]

    def run_blocks(
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
        if self.runs is not None:
            for block in self.runs:
                x = block(x, y, t, text_bias, x_mask, t0, positions, frames)
            return x
        for index in range(len(self.spatial_blocks)):
            x = self.spatial_blocks[index](x, y, t, text_bias, x_mask, t0, positions, frames)
            x = self.temporal_blocks[index](x, y, t, text_bias, x_mask, t0, positions, frames)
        return x

"""STDiT (Open-Sora 1.0): latents of one size, position tables that are part of the state.

Upstream: opensora/models/stdit/stdit.py, branch opensora/v1.0.
"""

from __future__ import annotations

from typing import Any

from mindspore import Tensor, nn

from models import ops
from models.config import ModelConfig
from models.layers.attention import Attention, CrossAttention
from models.layers.linear import Mlp, parameter
from models.layers.modulation import modulation
from models.stdit.base import Block, Transformer

Size = tuple[int, int, int]


class STDiTBlock(Block):
    """Modulated attention over space, attention over time on the residual as it is, text, modulated perceptron.

    Both attentions share a gate. ``positioned``: the block that adds the temporal positions, the first.
    """

    def __init__(self, config: ModelConfig, positioned: bool) -> None:
        super().__init__()
        hidden, heads = config.hidden_size, config.num_heads
        self.positioned = positioned
        self.attn = Attention(hidden, heads)
        self.attn_temp = Attention(hidden, heads)
        self.cross_attn = CrossAttention(hidden, heads)
        self.mlp = Mlp(hidden, int(hidden * config.mlp_ratio), hidden)
        self.scale_shift_table = parameter(6, hidden)
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
        positions: Tensor,
        frames: int,
    ) -> Tensor:
        """See :class:`models.stdit.base.Block`: k is 6, positions the temporal table; there are no frame masks."""
        b, n, c = x.shape
        table = self.scale_shift_table if self.source is None else self.source("scale_shift_table")
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation(table, t.reshape(-1, 6, c), None, None)
        x = x.reshape(b, frames, n // frames, c)
        x = self._gate_add(x, gate_a, self.over_space(self.attn, self._norm_modulate(x, shift_a, scale_a)))
        x = self._gate_add(x, gate_a, self.over_time(self.attn_temp, x, None, positions if self.positioned else None))
        x = x.reshape(b, n, c)
        x = (x + self.cross_attn(x, y, text_bias)).reshape(b, frames, n // frames, c)
        x = self._gate_add(x, gate_m, self.mlp(self._norm_modulate(x, shift_m, scale_m)))
        return x.reshape(b, n, c)


class STDiT(Transformer):
    """Made for latents of one size, ``latent_size`` (T, H, W). Knows nothing of a video but its tokens.

    Conditioning frames do not exist in 1.0: with ``x_mask`` the forward pass raises ValueError.
    """

    def __init__(self, config: ModelConfig, latent_size: Size, dtype: str = "fp32") -> None:
        super().__init__(config, dtype)
        self.latent_size = tuple(latent_size)
        for side, patch in zip(self.latent_size, self.patch_size, strict=True):
            if side % patch:
                raise ValueError(f"STDiT is made for latents in whole patches; {latent_size} is not, of {patch}")
        frames, rows, columns = self.token_grid(*self.latent_size)
        self.pos_embed = parameter(1, rows * columns, config.hidden_size, trainable=False)
        self.pos_embed_temporal = parameter(1, frames, config.hidden_size, trainable=False)
        self.blocks = nn.CellList([STDiTBlock(config, positioned=index == 0) for index in range(config.depth)])
        self.freeze()

    def space_positions(self, grid: Size, height: Tensor | None, width: Tensor | None) -> Tensor:
        if grid[1] * grid[2] != self.pos_embed.shape[1] or grid[0] != self.pos_embed_temporal.shape[1]:
            raise ValueError(f"STDiT was made for latents of another size: {grid} patches do not fit its tables")
        return self.pos_embed

    def time_positions(self, frames: int) -> Tensor:
        return self.pos_embed_temporal

    def conditions(
        self,
        batch: int,
        fps: Tensor | None,
        height: Tensor | None,
        width: Tensor | None,
        num_frames: Tensor | None,
        ar: Tensor | None,
    ) -> None:
        return None

    def times(self, timestep: Tensor, conditions: None, conditioning: bool = False) -> tuple[Tensor, Tensor]:
        """What modulates blocks [B, 6 hidden] and the final layer [B, hidden]."""
        if conditioning:
            raise ValueError("STDiT knows no conditioning frames: leave x_mask out")
        t = self.t_embedder(timestep)
        return self.t_block(t), t

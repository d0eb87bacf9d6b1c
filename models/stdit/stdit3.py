"""STDiT3. Upstream: opensora/models/stdit/stdit3.py, branch opensora/v1.2. Parameter names are its state-dict keys."""

from __future__ import annotations

import math
from typing import Any

import mindspore as ms
from mindspore import Tensor, nn
from mindspore import ops as P

from models import ops
from models.config import ModelConfig
from models.layers.attention import Attention, CrossAttention, RotaryTable, mask_bias, packed_mask
from models.layers.embeddings import CaptionEmbedder, PatchEmbed3D, PositionTable2D, SizeEmbedder, TimestepEmbedder
from models.layers.linear import Linear, Mlp, SiLU, as_dtype, parameter
from models.layers.modulation import FinalLayer, modulation
from models.stdit.initial import initialize


class STDiT3Block(nn.Cell):
    """Modulated self attention over space or time, cross attention to text, modulated perceptron."""

    def __init__(self, config: ModelConfig, temporal: bool) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.temporal = temporal
        self.attn = Attention(hidden, config.num_heads, qk_norm=config.qk_norm, rope=temporal)
        self.cross_attn = CrossAttention(hidden, config.num_heads)
        self.mlp = Mlp(hidden, int(hidden * config.mlp_ratio), hidden)
        self.scale_shift_table = parameter(6, hidden)
        self.source = None
        self.frames_exchange = None
        self._norm_modulate = ops.norm_modulate
        self._gate_add = ops.gate_add

    def _attend(self, x: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        """x [B, T, S, C]: attention along T (temporal) or S."""
        b, t, s, c = x.shape
        if not self.temporal:
            return self.attn(x.reshape(b * t, s, c)).reshape(b, t, s, c)
        if self.frames_exchange is not None:
            x = self.frames_exchange.to_whole_frames(x)
        b, t, s, c = x.shape
        x = x.transpose(0, 2, 1, 3).reshape(b * s, t, c)
        x = self.attn(x, rope).reshape(b, s, t, c).transpose(0, 2, 1, 3)
        if self.frames_exchange is not None:
            x = self.frames_exchange.to_own_frames(x)
        return x

    def construct(
        self,
        x: Tensor,
        y: Tensor,
        t: Tensor,
        text_bias: Tensor | None,
        x_mask: Tensor | None,
        t0: Tensor | None,
        rope: tuple[Tensor, Tensor] | None,
        frames: int,
    ) -> Tensor:
        """x [B, frames * S, C], y [B or 1, L, C], t and t0 [B, 6 C], x_mask bool [B, frames] -> x's shape."""
        b, n, c = x.shape
        zero = None if t0 is None else t0.reshape(-1, 6, c)
        table = self.scale_shift_table if self.source is None else self.source("scale_shift_table")
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation(table, t.reshape(-1, 6, c), zero, x_mask)
        x = x.reshape(b, frames, n // frames, c)
        x = self._gate_add(x, gate_a, self._attend(self._norm_modulate(x, shift_a, scale_a), rope))
        x = x.reshape(b, n, c)
        x = (x + self.cross_attn(x, y, text_bias)).reshape(b, frames, n // frames, c)
        x = self._gate_add(x, gate_m, self.mlp(self._norm_modulate(x, shift_m, scale_m)))
        return x.reshape(b, n, c)


class STDiT3(nn.Cell):
    """Predicts the velocity (and, with ``pred_sigma``, an unused second half) of a latent video.

    All randomness is an input: captions are dropped where ``drop_ids`` says so and nowhere else. Parameters are
    float32; activations are ``dtype`` (fp32, fp16 or bf16), the result is float32.

    ``sequence``: None, or how several ranks share the tokens of a sample (:mod:`models.parallel.sequence`).
    ``spatial_runs``, ``temporal_runs``: None, or what runs the blocks instead of themselves, in eager mode
    (:mod:`models.parallel.recompute`).
    """

    def __init__(self, config: ModelConfig, dtype: str = "fp32") -> None:
        super().__init__()
        hidden = config.hidden_size
        self.config = config
        self.dtype = as_dtype(dtype)
        self.patch_size = tuple(config.patch_size)
        self.in_channels = config.in_channels
        self.out_channels = config.in_channels * (2 if config.pred_sigma else 1)
        self.input_sq_size = float(config.input_sq_size)
        self.skip_y_embedder = config.skip_y_embedder
        self.pos_embed = PositionTable2D(hidden)
        self.rope = RotaryTable(hidden // config.num_heads)
        self.x_embedder = PatchEmbed3D(self.patch_size, config.in_channels, hidden)
        self.t_embedder = TimestepEmbedder(hidden, self.dtype)
        self.fps_embedder = SizeEmbedder(hidden, self.dtype)
        self.t_block = nn.SequentialCell(SiLU(), Linear(hidden, 6 * hidden))
        self.y_embedder = CaptionEmbedder(config.caption_channels, hidden, config.model_max_length)
        self.spatial_blocks = nn.CellList([STDiT3Block(config, temporal=False) for _ in range(config.depth)])
        self.temporal_blocks = nn.CellList([STDiT3Block(config, temporal=True) for _ in range(config.depth)])
        self.final_layer = FinalLayer(hidden, math.prod(self.patch_size), self.out_channels)
        self.sequence, self.spatial_runs, self.temporal_runs = None, None, None
        self._freeze(config)

    def _freeze(self, config: ModelConfig) -> None:
        for name, param in self.parameters_and_names():
            if config.only_train_temporal and not name.startswith("temporal_blocks."):
                param.requires_grad = False
            if config.freeze_y_embedder and name.startswith("y_embedder."):
                param.requires_grad = False

    def token_grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Numbers of patches along T, H and W of a latent of that size."""
        pt, ph, pw = self.patch_size
        return -(-frames // pt), -(-height // ph), -(-width // pw)

    def encode_text(self, y: Tensor, mask: Tensor | None, drop_ids: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Projected text [B or 1, L, hidden] and the bias that hides what a sample must not see."""
        if self.skip_y_embedder:
            y = y.reshape(1, -1, y.shape[-1])
            return y, None if mask is None else mask_bias(packed_mask(mask, y.shape[1]))
        y = self.y_embedder(y, drop_ids)
        y = y.reshape(y.shape[0], -1, y.shape[-1])
        if mask is None:
            return y, None
        mask = mask.reshape(mask.shape[0], -1)
        if mask.shape[0] != y.shape[0]:
            mask = P.tile(mask, (y.shape[0] // mask.shape[0], 1))
        return y, mask_bias(mask)

    def construct(
        self,
        x: Tensor,
        timestep: Tensor,
        y: Tensor,
        mask: Tensor | None = None,
        x_mask: Tensor | None = None,
        fps: Tensor | None = None,
        height: Tensor | None = None,
        width: Tensor | None = None,
        drop_ids: Tensor | None = None,
    ) -> Tensor:
        """x [B, C, T, H, W] latents, timestep [B] in 0..1000 -> float32 [B, out_channels, T, H, W].

        y: captions [B, 1, L, caption_channels] with ``mask`` [b, L] of 0 and 1 (b divides B, rows repeat in turn); with
            ``skip_y_embedder`` packed projected text [1, total, hidden] with ``mask`` [B] token counts. No mask: all.
        x_mask: bool [B, frames of patches], False = conditioning frame (timestep zero).
        fps, height, width: [b] float, frames a second and pixels; sample 0's size scales the position table.
        drop_ids: [B], 1 = replace the caption by the null caption.
        """
        _, _, frames, rows, columns = x.shape
        tokens = self.tokens(x, timestep, y, mask, x_mask, fps, height, width, drop_ids)
        if self.sequence is not None:
            tokens = self.sequence.gather(tokens)
        grid = self.token_grid(frames, rows, columns)
        return self._unpatchify(tokens, grid)[:, :, :frames, :rows, :columns].astype(ms.float32)

    def tokens(
        self,
        x: Tensor,
        timestep: Tensor,
        y: Tensor,
        mask: Tensor | None = None,
        x_mask: Tensor | None = None,
        fps: Tensor | None = None,
        height: Tensor | None = None,
        width: Tensor | None = None,
        drop_ids: Tensor | None = None,
    ) -> Tensor:
        """Arguments of :meth:`construct` -> [B, t, s, patch volume * out_channels]: this rank's tokens of the output.

        Without sequence parallelism these are all of them, t frames of s patches.
        """
        batch, _, frames, rows, columns = x.shape
        t_count, h_count, w_count = self.token_grid(frames, rows, columns)
        spatial = h_count * w_count
        scale = P.sqrt(height.astype(ms.float32)[0] * width.astype(ms.float32)[0]) / self.input_sq_size
        positions = self.pos_embed(h_count, w_count, scale, round(spatial**0.5)).astype(self.dtype)
        positions = positions.reshape(1, 1, spatial, positions.shape[-1])

        fps = self.fps_embedder(fps.reshape(-1, 1), batch)
        t = self.t_embedder(timestep) + fps
        t_mlp = self.t_block(t)
        t0, t0_mlp = None, None
        if x_mask is not None:
            t0 = self.t_embedder(P.zeros_like(timestep)) + fps
            t0_mlp = self.t_block(t0)

        y, text_bias = self.encode_text(y.astype(self.dtype), mask, drop_ids)
        t_local, s_local = t_count, spatial
        if self.sequence is None:
            x = self.x_embedder(x.astype(self.dtype))
        else:
            self.sequence.begin(t_count, spatial)
            patches = self.sequence.split(self.x_embedder.patches(x.astype(self.dtype)))
            positions = self.sequence.split_positions(positions)
            x_mask = self.sequence.split_frames(x_mask)
            t_local, s_local = patches.shape[1], patches.shape[2]
            x = self.x_embedder.proj(patches)
        x = x.reshape(batch, t_local, s_local, x.shape[-1]) + positions
        x = x.reshape(batch, t_local * s_local, x.shape[-1])

        rope = self.rope(t_count)
        spatial_blocks = self.spatial_blocks if self.spatial_runs is None else self.spatial_runs
        temporal_blocks = self.temporal_blocks if self.temporal_runs is None else self.temporal_runs
        for index in range(len(self.spatial_blocks)):
            x = spatial_blocks[index](x, y, t_mlp, text_bias, x_mask, t0_mlp, None, t_local)
            x = temporal_blocks[index](x, y, t_mlp, text_bias, x_mask, t0_mlp, rope, t_local)

        x = self.final_layer(x, t, x_mask, t0, t_local)
        return x.reshape(batch, t_local, s_local, x.shape[-1])

    def stages(self) -> list[list[str]]:
        """Prefixes of parameters in the order the forward pass uses them; those of one entry are used together."""
        first = ["x_embedder.", "t_embedder.", "fps_embedder.", "t_block.", "y_embedder."]
        depth = range(len(self.spatial_blocks))
        blocks = [[f"{kind}_blocks.{index}."] for index in depth for kind in ("spatial", "temporal")]
        return [first, *blocks, ["final_layer."]]

    def _unpatchify(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """x [B, t, s, patch volume * channels] -> [B, channels, T, H, W], padding included."""
        pt, ph, pw = self.patch_size
        t, h, w = grid
        x = x.reshape(x.shape[0], t, h, w, pt, ph, pw, self.out_channels).transpose(0, 7, 1, 4, 2, 5, 3, 6)
        return x.reshape(x.shape[0], self.out_channels, t * pt, h * ph, w * pw)


def build_model(config: ModelConfig, seed: int, dtype: str = "fp32") -> STDiT3:
    """STDiT3 with initial weights that depend on ``seed`` and the parameters' names alone."""
    model = STDiT3(config, dtype)
    initialize(model, seed)
    return model


def config_from_init(init: dict[str, Any]) -> ModelConfig:
    """ModelConfig from constructor arguments of the original ``STDiT3Config``; its device switches are dropped."""
    known = ModelConfig.model_fields
    return ModelConfig(**{key: value for key, value in init.items() if key in known})

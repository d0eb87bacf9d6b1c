"""What the three transformers have in common: patches, text, the way through the blocks, the output.

Parameter names are the original state-dict keys. Upstream: opensora/models/stdit/{stdit,stdit2,stdit3}.py on the
branches opensora/v1.0, v1.1 and v1.2.
"""

from __future__ import annotations

import math
from typing import Any

import mindspore as ms
from mindspore import Tensor, nn
from mindspore import ops as P

from models.config import ModelConfig
from models.layers.attention import mask_bias, packed_mask
from models.layers.embeddings import CaptionEmbedder, PatchEmbed3D, TimestepEmbedder
from models.layers.linear import Linear, SiLU, as_dtype
from models.layers.modulation import FinalLayer
from models.shapes import frozen

# What a block takes, in order; of these only x, y, t and t0 may carry gradients (see models/parallel/recompute.py).
DIFFERENTIABLE = (0, 1, 2, 5)


def time_projection(hidden: int, count: int) -> nn.SequentialCell:
    """[B, hidden] -> [B, count * hidden]: the modulation that all blocks share."""
    return nn.SequentialCell(SiLU(), Linear(hidden, count * hidden))


class Block(nn.Cell):
    """A block of any of the transformers.

    construct(x, y, t, text_bias, x_mask, t0, positions, frames): x [B, frames * S, C], y [B or 1, L, C], t and t0
    [B, k C] (t0 None without x_mask), text_bias [B, 1, 1, L] or None, x_mask bool [B, frames] or None, positions what
    the model gives along time -> x's shape.

    ``frames_exchange``: None, or how ranks that hold part of the frames come to hold all of them for part of the
    patches, around attention along time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.source = None
        self.frames_exchange = None

    def over_space(self, attention: nn.Cell, x: Tensor) -> Tensor:
        """Attention among the patches of every frame. x [B, T, S, C]."""
        b, t, s, c = x.shape
        return attention(x.reshape(b * t, s, c)).reshape(b, t, s, c)

    def over_time(self, attention: nn.Cell, x: Tensor, rope: Any = None, positions: Tensor | None = None) -> Tensor:
        """Attention among the frames of every patch. x [B, T, S, C]; positions [1, T, C] are added to its input."""
        if self.frames_exchange is not None:
            x = self.frames_exchange.to_whole_frames(x)
        b, t, s, c = x.shape
        if positions is not None:
            x = x + positions.reshape(1, t, 1, c).astype(x.dtype)
        x = x.transpose(0, 2, 1, 3).reshape(b * s, t, c)
        x = attention(x, rope).reshape(b, s, t, c).transpose(0, 2, 1, 3)
        if self.frames_exchange is not None:
            x = self.frames_exchange.to_own_frames(x)
        return x


class Transformer(nn.Cell):
    """Predicts noise or velocity (and, with ``pred_sigma``, a second half for the variance) of a latent video.

    All randomness is an input: captions are dropped where ``drop_ids`` says so and nowhere else. Parameters are
    float32; activations are ``dtype`` (fp32, fp16 or bf16), the result is float32.

    ``sequence``: None, or how several ranks share the tokens of a sample (:mod:`models.parallel.sequence`).
    ``runs``: None, or what runs the blocks, in their order, instead of themselves, in eager mode
    (:mod:`models.parallel.recompute`).

    A subclass gives :meth:`times`, :meth:`space_positions`, :meth:`time_positions`, :meth:`run_blocks`,
    :meth:`blocks_in_order` and the list ``first`` of what comes before the blocks.
    """

    # Prefixes of parameters used before the first block.
    first: tuple[str, ...] = ("x_embedder.", "t_embedder.", "t_block.", "y_embedder.")

    def __init__(self, config: ModelConfig, dtype: str = "fp32") -> None:
        super().__init__()
        hidden = config.hidden_size
        self.config = config
        self.dtype = as_dtype(dtype)
        self.hidden_size = hidden
        self.patch_size = tuple(config.patch_size)
        self.in_channels = config.in_channels
        self.out_channels = config.out_channels
        self.skip_y_embedder = config.skip_y_embedder
        self.x_embedder = PatchEmbed3D(self.patch_size, config.in_channels, hidden)
        self.t_embedder = TimestepEmbedder(hidden, self.dtype)
        self.t_block = time_projection(hidden, 6)
        self.y_embedder = CaptionEmbedder(config.caption_channels, hidden, config.model_max_length)
        self.final_layer = FinalLayer(hidden, math.prod(self.patch_size), self.out_channels)
        self.sequence, self.runs = None, None

    def freeze(self) -> None:
        """Takes what ``config`` freezes out of training. Called when all parameters are there."""
        for name, param in self.parameters_and_names():
            if frozen(self.config, name):
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
        num_frames: Tensor | None = None,
        ar: Tensor | None = None,
        drop_ids: Tensor | None = None,
    ) -> Tensor:
        """x [B, C, T, H, W] latents, timestep [B] in 0..1000 -> float32 [B, out_channels, T, H, W].

        y: captions [B, 1, L, caption_channels] with ``mask`` [b, L] of 0 and 1 (b divides B, rows repeat in turn); with
            ``skip_y_embedder`` packed projected text [1, total, hidden] with ``mask`` [B] token counts. No mask: all.
        x_mask: bool [B, frames of patches], False = conditioning frame (timestep zero).
        fps, height, width, num_frames, ar: [b] float: frames a second, sides in pixels, pixel frames, height / width;
            sample 0's size scales the position table. Every model ignores what it has no use for.
        drop_ids: [B], 1 = replace the caption by the null caption.
        """
        _, _, frames, rows, columns = x.shape
        tokens = self.tokens(x, timestep, y, mask, x_mask, fps, height, width, num_frames, ar, drop_ids)
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
        num_frames: Tensor | None = None,
        ar: Tensor | None = None,
        drop_ids: Tensor | None = None,
    ) -> Tensor:
        """Arguments of :meth:`construct` -> [B, t, s, patch volume * out_channels]: this rank's tokens of the output.

        Without sequence parallelism these are all of them, t frames of s patches.
        """
        batch, _, frames, rows, columns = x.shape
        grid = self.token_grid(frames, rows, columns)
        spatial = grid[1] * grid[2]
        positions = self.space_positions(grid, height, width).astype(self.dtype)
        positions = positions.reshape(1, 1, spatial, self.hidden_size)
        conditions = self.conditions(batch, fps, height, width, num_frames, ar)
        t, t_final = self.times(timestep, conditions)
        t0, t0_final = None, None
        if x_mask is not None:
            t0, t0_final = self.times(P.zeros_like(timestep), conditions, True)
        y, text_bias = self.encode_text(y.astype(self.dtype), mask, drop_ids)
        t_local, s_local = grid[0], spatial
        if self.sequence is None:
            x = self.x_embedder(x.astype(self.dtype))
        else:
            self.sequence.begin(grid[0], spatial)
            patches = self.sequence.split(self.x_embedder.patches(x.astype(self.dtype)))
            positions = self.sequence.split_positions(positions)
            x_mask = self.sequence.split_frames(x_mask)
            t_local, s_local = patches.shape[1], patches.shape[2]
            x = self.x_embedder.proj(patches)
        x = x.reshape(batch, t_local, s_local, x.shape[-1]) + positions
        x = x.reshape(batch, t_local * s_local, x.shape[-1])
        x = self.run_blocks(x, y, t, text_bias, x_mask, t0, self.time_positions(grid[0]), t_local)
        x = self.final_layer(x, t_final, x_mask, t0_final, t_local)
        return x.reshape(batch, t_local, s_local, x.shape[-1])

    def stages(self) -> list[list[str]]:
        """Prefixes of parameters in the order the forward pass uses them; those of one entry are used together."""
        names = {id(cell): name for name, cell in self.cells_and_names()}
        blocks = [[f"{names[id(block)]}."] for block in self.blocks_in_order()]
        return [list(self.first), *blocks, ["final_layer."]]

    def blocks_in_order(self) -> list[Any]:
        """All blocks in the order they run."""
        return list(self.blocks)

    def run_blocks(
        self,
        x: Tensor,
        y: Tensor,
        t: Tensor,
        text_bias: Tensor | None,
        x_mask: Tensor | None,
        t0: Tensor | None,
        positions: Any,
        frames: int,
    ) -> Tensor:
        """All blocks, one after the other."""
        blocks = self.blocks if self.runs is None else self.runs
        for index in range(len(self.blocks)):
            x = blocks[index](x, y, t, text_bias, x_mask, t0, positions, frames)
        return x

    def _unpatchify(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """x [B, t, s, patch volume * channels] -> [B, channels, T, H, W], padding included."""
        pt, ph, pw = self.patch_size
        t, h, w = grid
        x = x.reshape(x.shape[0], t, h, w, pt, ph, pw, self.out_channels).transpose(0, 7, 1, 4, 2, 5, 3, 6)
        return x.reshape(x.shape[0], self.out_channels, t * pt, h * ph, w * pw)


def scaled_positions(table: nn.Cell, grid: tuple[int, int, int], height: Tensor, width: Tensor, side: float) -> Tensor:
    """The position table of a frame of any size: sample 0's pixels against a square of ``side`` scale it."""
    scale = P.sqrt(height.astype(ms.float32)[0] * width.astype(ms.float32)[0]) / side
    return table(grid[1], grid[2], scale, round((grid[1] * grid[2]) ** 0.5))

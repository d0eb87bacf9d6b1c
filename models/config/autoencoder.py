"""How pixels become latents: which autoencoder, its sizes, and how its work is cut into pieces."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from models.config.base import Dtype, Positive, Section

# Latent statistics of the published autoencoders. Upstream: opensora/models/vae/vae.py (branch opensora/v1.2).
SD_SCALE_FACTOR = 0.18215
V1_2_SHIFT = (-0.10, 0.34, 0.27, 0.98)
V1_2_SCALE = (3.85, 2.32, 2.33, 3.06)

Size = tuple[int | None, int | None, int | None]


class SpatialConfig(Section):
    """The image autoencoder of Stable Diffusion and SDXL; names are those of diffusers' ``AutoencoderKL``."""

    in_channels: Positive = 3
    out_channels: Positive = 3
    block_out_channels: Annotated[tuple[Positive, ...], Field(min_length=1)] = (128, 256, 512, 512)
    layers_per_block: Positive = 2
    norm_num_groups: Positive = 32
    latent_channels: Positive = 4

    @property
    def factor(self) -> int:
        """Pixels of a side that become one latent: every level but the last halves."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @model_validator(mode="after")
    def _groups(self) -> SpatialConfig:
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ValueError(f"norm_num_groups {self.norm_num_groups} does not divide {channels} channels")
        return self


class TemporalConfig(Section):
    """The temporal autoencoder on image latents; names are those of upstream's ``VAE_Temporal``."""

    latent_embed_dim: Positive = 4
    embed_dim: Positive = 4
    filters: Positive = 128
    num_res_blocks: Positive = 4
    channel_multipliers: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 2, 2, 4)
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    num_groups: Positive = 32
    activation_fn: Literal["swish", "relu"] = "swish"

    @property
    def factor(self) -> int:
        """Frames that become one latent."""
        return int(2 ** sum(self.temporal_downsample))

    @model_validator(mode="after")
    def _levels(self) -> TemporalConfig:
        steps = len(self.channel_multipliers) - 1
        if len(self.temporal_downsample) != steps:
            raise ValueError(f"temporal_downsample has {len(self.temporal_downsample)} entries, {steps} are needed: "
                             f"one between every two of channel_multipliers")  # fmt: skip
        for multiplier in self.channel_multipliers:
            if self.filters * multiplier % self.num_groups:
                raise ValueError(f"num_groups {self.num_groups} does not divide {self.filters * multiplier} channels")
        return self


class TilingConfig(Section):
    """Frames larger than a tile are coded tile by tile; neighbours overlap and are blended linearly.

    size: pixels of a tile's side; overlap: the part of a tile that its neighbour covers, too.
    """

    size: Positive = 512
    overlap: Annotated[float, Field(gt=0, le=0.5)] = 0.25


class AutoencoderConfig(Section):
    """How pixels become latents. ``identity``: latents are the pixels in [-1, 1] (in_channels 3).

    VideoAutoencoderKL: the image autoencoder, frame by frame (Open-Sora 1.0 and 1.1). OpenSoraVAE_V1_2: a temporal one
    behind it. scale_factor multiplies latents of images. scale and shift, a number or one a channel: latents of clips
    are (z - shift) / scale; None takes what the weights say, or upstream's numbers.
    """

    type: Literal["identity", "VideoAutoencoderKL", "OpenSoraVAE_V1_2"] = "OpenSoraVAE_V1_2"
    pretrained: str | None = None
    pretrained_2d: str | None = None
    spatial: SpatialConfig = SpatialConfig()
    temporal: TemporalConfig = TemporalConfig()
    scale_factor: Annotated[float, Field(gt=0)] = SD_SCALE_FACTOR
    scale: float | tuple[float, ...] | None = None
    shift: float | tuple[float, ...] | None = None
    micro_batch_size: Positive | None = 4
    micro_frame_size: Positive | None = 17
    tiling: TilingConfig | None = None
    dtype: Dtype = "bf16"

    @property
    def latent_channels(self) -> int:
        if self.type == "identity":
            return 3
        return self.spatial.latent_channels if self.type == "VideoAutoencoderKL" else self.temporal.embed_dim

    @property
    def patch_size(self) -> tuple[int, int, int]:
        """Frames, rows and columns of pixels that become one latent."""
        if self.type == "identity":
            return 1, 1, 1
        frames = self.temporal.factor if self.type == "OpenSoraVAE_V1_2" else 1
        return frames, self.spatial.factor, self.spatial.factor

    @property
    def has_weights(self) -> bool:
        """Whether weights are named for all of it."""
        if self.type == "VideoAutoencoderKL":
            return bool(self.pretrained or self.pretrained_2d)
        return self.type == "identity" or bool(self.pretrained)

    @property
    def chunk(self) -> int | None:
        """Frames that are coded by themselves; None: all together."""
        return self.micro_frame_size if self.type == "OpenSoraVAE_V1_2" else None

    def latent_size(self, size: Size) -> Size:
        """(frames, height, width) of the latents of a clip of that size; what is None stays None.

        Upstream ``get_latent_size``: the last incomplete pixels of a side are cut; every chunk of micro_frame_size
        frames is padded to a multiple of the temporal factor.
        """
        (frames, height, width), patch = size, self.patch_size
        if frames is not None:
            full, rest = divmod(frames, self.chunk or max(frames, 1))
            frames = full * math.ceil((self.chunk or frames) / patch[0]) + math.ceil(rest / patch[0])
        sides = [None if side is None else side // step for side, step in zip((height, width), patch[1:], strict=True)]
        return frames, sides[0], sides[1]

    def noise_shapes(self, size: tuple[int, int, int]) -> list[tuple[int, int, int, int]]:
        """Shapes [C, frames, rows, columns] of the standard normal noise that draws the latents of one clip.

        In the order of their use: latents of images, frame by frame, then of the clip. Nothing for ``identity``.
        """
        if self.type == "identity":
            return []
        _, rows, columns = (value or 0 for value in self.latent_size(size))
        shapes = [(self.spatial.latent_channels, size[0], rows, columns)]
        if self.type == "OpenSoraVAE_V1_2":
            shapes.append((self.temporal.embed_dim, self.latent_size(size)[0] or 0, rows, columns))
        return shapes

    @field_validator("scale")
    @classmethod
    def _not_zero(cls, value: float | tuple[float, ...] | None) -> float | tuple[float, ...] | None:
        numbers = value if isinstance(value, tuple) else () if value is None else (value,)
        if any(number == 0 for number in numbers):
            raise ValueError("a scale of 0 loses the latents")
        return value

    @model_validator(mode="after")
    def _statistics(self) -> AutoencoderConfig:
        for name, value in (("scale", self.scale), ("shift", self.shift)):
            if isinstance(value, tuple) and len(value) != self.latent_channels:
                raise ValueError(f"{name} has {len(value)} numbers for {self.latent_channels} channels of latents")
        return self

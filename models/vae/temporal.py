"""The temporal autoencoder on image latents: four frames become one. Upstream: opensora/models/vae/vae_temporal.py.

Convolutions are causal in time: zeros in front only. Norms are not: they see all frames of a chunk.
"""

from __future__ import annotations

from itertools import pairwise

from mindspore import Tensor, nn
from mindspore import ops as P

from models.config import TemporalConfig
from models.layers.convolution import Conv3d, GroupNorm
from models.vae.distribution import draw


class CausalConv3d(nn.Cell):
    """Convolution that never sees later frames; the sides keep their size.

    x [B, in, T, H, W] -> [B, out, T / stride, H, W], T a multiple of the stride in time.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        front, side = kernel_size - stride, kernel_size // 2
        self.conv = Conv3d(
            in_channels,
            out_channels,
            (kernel_size, kernel_size, kernel_size),
            (stride, 1, 1),
            (front, 0, side, side, side, side),
            bias,
        )

    def construct(self, x: Tensor) -> Tensor:
        return self.conv(x)


class ResBlock(nn.Cell):
    """x [B, in, T, H, W] -> [B, out, T, H, W]: twice norm, activation, convolution; added to x."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, activation: str) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, in_channels, activation=activation)
        self.conv1 = CausalConv3d(in_channels, out_channels, 3, bias=False)
        self.norm2 = GroupNorm(groups, out_channels, activation=activation)
        self.conv2 = CausalConv3d(out_channels, out_channels, 3, bias=False)
        self.conv3 = CausalConv3d(in_channels, out_channels, 1, bias=False) if in_channels != out_channels else None

    def construct(self, x: Tensor) -> Tensor:
        hidden = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        if self.conv3 is not None:
            x = self.conv3(x)
        return x + hidden


def _blocks(config: TemporalConfig, in_channels: int, out_channels: int) -> nn.CellList:
    widths = [in_channels] + [out_channels] * config.num_res_blocks
    activation = _activation(config)
    return nn.CellList([ResBlock(a, b, config.num_groups, activation) for a, b in pairwise(widths)])


def _activation(config: TemporalConfig) -> str:
    return "silu" if config.activation_fn == "swish" else config.activation_fn


class Encoder(nn.Cell):
    """[B, in_channels, T, h, w] -> [B, 2 latent_embed_dim, T / factor, h, w].

    ``conv_blocks`` stands between levels; where frames are not halved it does nothing and has no parameters.
    """

    def __init__(self, config: TemporalConfig, in_channels: int) -> None:
        super().__init__()
        widths = [config.filters * multiplier for multiplier in config.channel_multipliers]
        inputs = [config.filters, *widths[:-1]]
        self.conv_in = CausalConv3d(in_channels, config.filters, 3, bias=False)
        self.block_res_blocks = nn.CellList(
            [_blocks(config, a, b) for a, b in zip(inputs, widths, strict=True)],
        )
        self.conv_blocks = nn.CellList(
            [
                CausalConv3d(width, width, 3, stride=2) if halves else nn.Identity()
                for width, halves in zip(widths[:-1], config.temporal_downsample, strict=True)
            ]
        )
        self.res_blocks = _blocks(config, widths[-1], widths[-1])
        self.norm1 = GroupNorm(config.num_groups, widths[-1], activation=_activation(config))
        self.conv2 = CausalConv3d(widths[-1], 2 * config.latent_embed_dim, 1)
        self.levels = len(widths)

    def construct(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in range(self.levels):
            for block in self.block_res_blocks[level]:
                x = block(x)
            if level < self.levels - 1:
                x = self.conv_blocks[level](x)
        for block in self.res_blocks:
            x = block(x)
        return self.conv2(self.norm1(x))


class Decoder(nn.Cell):
    """[B, latent_embed_dim, t, h, w] -> [B, out_channels, factor t, h, w]; levels are numbered as in the encoder."""

    def __init__(self, config: TemporalConfig, out_channels: int) -> None:
        super().__init__()
        widths = [config.filters * multiplier for multiplier in config.channel_multipliers]
        inputs = [*widths[1:], widths[-1]]
        self.conv1 = CausalConv3d(config.latent_embed_dim, widths[-1], 3)
        self.res_blocks = _blocks(config, widths[-1], widths[-1])
        self.block_res_blocks = nn.CellList(
            [_blocks(config, a, b) for a, b in zip(inputs, widths, strict=True)],
        )
        self.conv_blocks = nn.CellList(
            [
                CausalConv3d(width, 2 * width, 3) if doubles else nn.Identity()
                for width, doubles in zip(widths[1:], config.temporal_downsample, strict=True)
            ]
        )
        self.norm1 = GroupNorm(config.num_groups, widths[0], activation=_activation(config))
        self.conv_out = CausalConv3d(widths[0], out_channels, 3)
        self.levels, self.doubles = len(widths), config.temporal_downsample

    def construct(self, z: Tensor) -> Tensor:
        x = self.conv1(z)
        for block in self.res_blocks:
            x = block(x)
        for step in range(self.levels):
            level = self.levels - 1 - step
            for block in self.block_res_blocks[level]:
                x = block(x)
            if level > 0:
                x = self.conv_blocks[level - 1](x)
                if self.doubles[level - 1]:
                    x = channels_to_time(x)
        return self.conv_out(self.norm1(x))


def channels_to_time(x: Tensor) -> Tensor:
    """[B, 2 C, T, H, W] -> [B, C, 2 T, H, W]: neighbouring channels become neighbouring frames."""
    b, c, t, h, w = x.shape
    x = x.reshape(b, c // 2, 2, t, h, w).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, c // 2, 2 * t, h, w)


class VAETemporal(nn.Cell):
    """Clips of image latents to moments, and back. Upstream: ``VAE_Temporal``."""

    def __init__(self, config: TemporalConfig, in_out_channels: int) -> None:
        super().__init__()
        self.factor = config.factor
        self.encoder = Encoder(config, in_out_channels)
        self.quant_conv = CausalConv3d(2 * config.latent_embed_dim, 2 * config.embed_dim, 1)
        self.post_quant_conv = CausalConv3d(config.embed_dim, config.latent_embed_dim, 1)
        self.decoder = Decoder(config, in_out_channels)

    def encode(self, x: Tensor) -> Tensor:
        """x [B, C, T, h, w] -> moments [B, 2 embed_dim, ceil(T / factor), h, w]; zero frames in front fill T up."""
        b, c, t, h, w = x.shape
        short = -t % self.factor
        if short > 0:
            x = P.concat((P.zeros((b, c, short, h, w), x.dtype), x), 2)
        return self.quant_conv(self.encoder(x))

    def decode(self, z: Tensor, num_frames: int) -> Tensor:
        """z [B, embed_dim, t, h, w] -> [B, C, num_frames, h, w]: the frames that encoding put in front are cut off."""
        x = self.decoder(self.post_quant_conv(z))
        short = -num_frames % self.factor
        return x[:, :, short:] if short > 0 else x

    def construct(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """x through both; noise of the latents' shape draws them, None takes their means."""
        return self.decode(draw(self.encode(x), noise), x.shape[2])

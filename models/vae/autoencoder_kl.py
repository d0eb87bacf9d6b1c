"""The image autoencoder of Stable Diffusion and SDXL, and its use frame by frame.

Parameter names are those of diffusers 0.27 (``AutoencoderKL``), behind ``module.`` for the frame-wise form of
Open-Sora (opensora/models/vae/vae.py, ``VideoAutoencoderKL``). Architecture: Rombach et al. 2022.
"""

from __future__ import annotations

from itertools import pairwise

from mindspore import Tensor, nn

from models import ops
from models.config import SpatialConfig
from models.layers.convolution import Conv2d, GroupNorm
from models.layers.linear import Linear
from models.vae.distribution import draw

_EPS = 1e-6


class ResnetBlock(nn.Cell):
    """x [N, in, H, W] -> [N, out, H, W]: twice norm, SiLU and convolution, added to x (projected where in != out)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, in_channels, _EPS, "silu")
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(groups, out_channels, _EPS, "silu")
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def construct(self, x: Tensor) -> Tensor:
        hidden = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        return x + hidden


class PixelAttention(nn.Cell):
    """Self attention with one head over all pixels: x [N, C, H, W] -> same shape, added to x."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = GroupNorm(groups, channels, _EPS)
        self.to_q = Linear(channels, channels)
        self.to_k = Linear(channels, channels)
        self.to_v = Linear(channels, channels)
        self.to_out = nn.CellList([Linear(channels, channels)])
        self.scale = channels**-0.5
        self._attention = ops.attention

    def construct(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        tokens = self.group_norm(x).reshape(n, c, h * w).transpose(0, 2, 1)
        q, k, v = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        heads = (n, 1, h * w, c)
        out = self._attention(q.reshape(heads), k.reshape(heads), v.reshape(heads), None, self.scale)
        out = self.to_out[0](out.reshape(n, h * w, c))
        return x + out.transpose(0, 2, 1).reshape(n, c, h, w)


class MiddleBlock(nn.Cell):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.attentions = nn.CellList([PixelAttention(channels, groups)])
        self.resnets = nn.CellList([ResnetBlock(channels, channels, groups) for _ in range(2)])

    def construct(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Downsampler(nn.Cell):
    """Halves the sides: a row and a column of zeros behind, then a convolution with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=(0, 1, 0, 1))

    def construct(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsampler(nn.Cell):
    """Doubles the sides by repeating pixels, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)
        self._upsample = ops.upsample_nearest

    def construct(self, x: Tensor) -> Tensor:
        return self.conv(self._upsample(x))


class DownBlock(nn.Cell):
    """One level of the encoder."""

    def __init__(self, in_channels: int, out_channels: int, layers: int, groups: int, last: bool) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * layers
        self.resnets = nn.CellList([ResnetBlock(a, b, groups) for a, b in pairwise(widths)])
        self.downsamplers = None if last else nn.CellList([Downsampler(out_channels)])

    def construct(self, x: Tensor) -> Tensor:
        for block in self.resnets:
            x = block(x)
        if self.downsamplers is not None:
            x = self.downsamplers[0](x)
        return x


class UpBlock(nn.Cell):
    """One level of the decoder."""

    def __init__(self, in_channels: int, out_channels: int, layers: int, groups: int, last: bool) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * layers
        self.resnets = nn.CellList([ResnetBlock(a, b, groups) for a, b in pairwise(widths)])
        self.upsamplers = None if last else nn.CellList([Upsampler(out_channels)])

    def construct(self, x: Tensor) -> Tensor:
        for block in self.resnets:
            x = block(x)
        if self.upsamplers is not None:
            x = self.upsamplers[0](x)
        return x


class Encoder(nn.Cell):
    """Pixels [N, in_channels, H, W] -> [N, 2 latent_channels, H / factor, W / factor]."""

    def __init__(self, config: SpatialConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = Conv2d(config.in_channels, widths[0], 3, padding=1)
        inputs = (widths[0], *widths[:-1])
        last = len(widths) - 1
        self.down_blocks = nn.CellList(
            [DownBlock(inputs[i], widths[i], config.layers_per_block, groups, i == last) for i in range(len(widths))]
        )
        self.mid_block = MiddleBlock(widths[-1], groups)
        self.conv_norm_out = GroupNorm(groups, widths[-1], _EPS, "silu")
        self.conv_out = Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def construct(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(self.conv_norm_out(self.mid_block(x)))


class Decoder(nn.Cell):
    """Latents [N, latent_channels, h, w] -> pixels [N, out_channels, factor h, factor w]."""

    def __init__(self, config: SpatialConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MiddleBlock(widths[0], groups)
        inputs = (widths[0], *widths[:-1])
        layers, last = config.layers_per_block + 1, len(widths) - 1
        self.up_blocks = nn.CellList(
            [UpBlock(inputs[i], widths[i], layers, groups, i == last) for i in range(len(widths))]
        )
        self.conv_norm_out = GroupNorm(groups, widths[-1], _EPS, "silu")
        self.conv_out = Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def construct(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(self.conv_norm_out(x))


class AutoencoderKL(nn.Cell):
    """Images to moments of latents, and latents to images."""

    def __init__(self, config: SpatialConfig) -> None:
        super().__init__()
        channels = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = Conv2d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = Conv2d(channels, channels, 1)

    def encode(self, x: Tensor) -> Tensor:
        """x [N, 3, H, W] in [-1, 1] -> moments [N, 2 C, h, w]: means, then logarithms of variances."""
        return self.quant_conv(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        """z [N, C, h, w] -> [N, 3, H, W], not clamped."""
        return self.decoder(self.post_quant_conv(z))

    def construct(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """x through both; noise [N, C, h, w] draws the latents, None takes their means."""
        return self.decode(draw(self.encode(x), noise))


class VideoAutoencoderKL(nn.Cell):
    """:class:`AutoencoderKL` on every frame by itself; latents are multiplied by ``scale_factor``.

    Upstream fixes the factor at 0.18215, whatever the weights' own configuration says.
    """

    def __init__(self, config: SpatialConfig, scale_factor: float) -> None:
        super().__init__()
        self.module = AutoencoderKL(config)
        self.scale_factor = scale_factor

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """x [B, 3, T, H, W], noise [B T, C, h, w] or None (means) -> [B, C, T, h, w]."""
        return as_video(self.encode_rows(as_rows(x), noise), x.shape[0])

    def decode(self, z: Tensor) -> Tensor:
        """z [B, C, T, h, w] -> [B, 3, T, H, W]"""
        return as_video(self.decode_rows(as_rows(z)), z.shape[0])

    def encode_rows(self, rows: Tensor, noise: Tensor | None = None) -> Tensor:
        """Frames [N, 3, H, W] -> latents [N, C, h, w]."""
        return draw(self.module.encode(rows), noise) * self.scale_factor

    def decode_rows(self, rows: Tensor) -> Tensor:
        """Latents [N, C, h, w] -> frames [N, 3, H, W]."""
        return self.module.decode(rows / self.scale_factor)

    def construct(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.decode(self.encode(x, noise))


def as_rows(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B T, C, H, W], the frames of a clip one after the other."""
    b, c, t, h, w = x.shape
    return x.transpose(0, 2, 1, 3, 4).reshape(b * t, c, h, w)


def as_video(rows: Tensor, samples: int) -> Tensor:
    """The reverse of :func:`as_rows`."""
    n, c, h, w = rows.shape
    return rows.reshape(samples, n // samples, c, h, w).transpose(0, 2, 1, 3, 4)

"""Both autoencoders in a row: frames to image latents to latents of clips. For training, with gradients.

Upstream: opensora/models/vae/vae.py (branch opensora/v1.2), ``VideoAutoencoderPipeline`` and ``OpenSoraVAE_V1_2``.
Frozen use, in micro batches and over ranks, is :mod:`models.vae.autoencoder`.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as P

from models.config import AutoencoderConfig
from models.config.autoencoder import V1_2_SCALE, V1_2_SHIFT
from models.layers.linear import parameter
from models.vae.autoencoder_kl import VideoAutoencoderKL
from models.vae.distribution import draw
from models.vae.temporal import VAETemporal

# One number, or one a channel.
Statistics = float | tuple[float, ...]


class VideoAutoencoderPipeline(nn.Cell):
    """``spatial_vae`` on frames, then ``temporal_vae`` on chunks of ``micro_frame_size`` frames.

    ``scale`` and ``shift`` [1, C, 1, 1, 1] are fixed; latents that leave :meth:`encode` are (z - shift) / scale.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.spatial_vae = VideoAutoencoderKL(config.spatial, config.scale_factor)
        self.temporal_vae = VAETemporal(config.temporal, config.spatial.latent_channels)
        channels = config.temporal.embed_dim
        self.scale = parameter(1, channels, 1, 1, 1, trainable=False)
        self.shift = parameter(1, channels, 1, 1, 1, trainable=False)
        published = channels == len(V1_2_SCALE)
        set_statistics(self.scale, config.scale, V1_2_SCALE if published else 1.0)
        set_statistics(self.shift, config.shift, V1_2_SHIFT if published else 0.0)
        self.micro_frame_size = config.micro_frame_size
        self.latents_of_chunk = -(-(config.micro_frame_size or 1) // config.temporal.factor)

    def normalized(self, z: Tensor) -> Tensor:
        """(z - shift) / scale"""
        return (z - self.shift.astype(z.dtype)) / self.scale.astype(z.dtype)

    def denormalized(self, z: Tensor) -> Tensor:
        """The reverse of :meth:`normalized`."""
        return z * self.scale.astype(z.dtype) + self.shift.astype(z.dtype)

    def encode_clip(self, x_z: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Image latents [B, C, T, h, w] -> latents [B, embed_dim, t, h, w], and the moments of the last chunk.

        noise of the latents' shape draws them, None takes means. Not normalised.
        """
        frames, start = x_z.shape[2], 0
        size = self.micro_frame_size or frames
        parts = []
        moments = x_z
        for first in range(0, frames, size):
            moments = self.temporal_vae.encode(x_z[:, :, first : min(first + size, frames)])
            stop = start + moments.shape[2]
            parts.append(draw(moments, None if noise is None else noise[:, :, start:stop]))
            start = stop
        return (parts[0] if len(parts) == 1 else P.concat(parts, 2)), moments

    def decode_clip(self, z: Tensor, num_frames: int) -> Tensor:
        """The reverse of :meth:`encode_clip`: [B, embed_dim, t, h, w] -> [B, C, num_frames, h, w]."""
        if self.micro_frame_size is None:
            return self.temporal_vae.decode(z, num_frames)
        parts, left = [], num_frames
        for first in range(0, z.shape[2], self.latents_of_chunk):
            chunk = z[:, :, first : first + self.latents_of_chunk]
            parts.append(self.temporal_vae.decode(chunk, min(self.micro_frame_size, left)))
            left -= self.micro_frame_size
        return parts[0] if len(parts) == 1 else P.concat(parts, 2)

    def encode(self, x: Tensor, noise_2d: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """x [B, 3, T, H, W] in [-1, 1] -> normalised latents. noise_2d [B T, C, h, w] and noise: as in training."""
        return self.normalized(self.encode_clip(self.spatial_vae.encode(x, noise_2d), noise)[0])

    def decode(self, z: Tensor, num_frames: int) -> Tensor:
        """Normalised latents -> [B, 3, num_frames, H, W]."""
        return self.spatial_vae.decode(self.decode_clip(self.denormalized(z), num_frames))

    def construct(
        self, x: Tensor, noise_2d: Tensor | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What losses are made of (upstream: ``cal_loss``); latents are not normalised.

        x [B, 3, T, H, W]; noise_2d [B T, C, h, w] in the order of samples, then frames; noise [B, embed_dim, t, h, w].
        Returns the reconstruction [B, 3, T, H, W], the reconstructed image latents [B, C, T, h, w], the latents z
        [B, embed_dim, t, h, w], the moments [B, 2 embed_dim, ., h, w] of the last chunk (as upstream: the KL term sees
        that one alone; mean and logarithm of the variance by :func:`models.vae.distribution.mean_and_logvar`), and the
        image latents [B, C, T, h, w].
        """
        x_z = self.spatial_vae.encode(x, noise_2d)
        z, moments = self.encode_clip(x_z, noise)
        x_z_rec = self.decode_clip(z, x.shape[2])
        return self.spatial_vae.decode(x_z_rec), x_z_rec, z, moments, x_z


def set_statistics(target: ms.Parameter, value: Statistics | None, default: Statistics) -> None:
    """Fills ``scale`` or ``shift`` [1, C, 1, 1, 1]."""
    numbers = np.asarray(default if value is None else value, np.float32).reshape(-1)
    channels = target.shape[1]
    target.set_data(Tensor(np.broadcast_to(numbers, (channels,)).reshape(1, channels, 1, 1, 1).copy()))

"""What autoencoder training minimises, clip by clip. Upstream: scripts/train_vae.py (branch opensora/v1.2).

Losses come as one number a clip whose mean over clips is upstream's loss of the batch, so that batches may be spread
over ranks and micro steps in any way. The variance of pixels (``logvar``) is a constant, as upstream never trains it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mindspore as ms
from mindspore import Tensor, nn
from mindspore import ops as P

from models.config.train_vae import TrainVaeConfig
from models.layers.linear import as_dtype
from models.vae.again import run_again
from models.vae.autoencoder_kl import VideoAutoencoderKL, as_rows, as_video
from models.vae.distribution import divergence, draw
from models.vae.losses import nll, per_clip
from models.vae.lpips import LPIPS
from models.vae.pipeline import VideoAutoencoderPipeline

# Of pixels (with the perceptual loss), divergence, of image latents, of single frames' latents.
TERMS = ("rec", "kl", "z_rec", "identity")
# float32 [B] each, in the order of ``TERMS``; None for what is not wanted.
Terms = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
Network = VideoAutoencoderKL | VideoAutoencoderPipeline
# A part of the network and its arguments -> its result; recomputes in the backward pass, or does not.
Runner = Callable[..., Any]


class Objective:
    """The network's forward pass on a batch of clips, and the losses chosen in the configuration."""

    def __init__(self, config: TrainVaeConfig, network: Network, distance: LPIPS | None, dtype: str) -> None:
        """distance: of frames, None for no perceptual loss. dtype: what the network computes in."""
        self.config, self.network, self.distance, self.dtype = config, network, distance, as_dtype(dtype)
        self._run: Runner = run_again if config.recompute else _call
        # Without recomputation pieces would save nothing: they are for memory alone.
        self._micro = config.autoencoder.micro_batch_size if config.recompute else None

    def losses(self, x: Tensor, noise: Sequence[Tensor]) -> Terms:
        """Losses of each clip, to be added.

        x float32 [B, 3, T, H, W] in [-1, 1]; noise [B, C, t, h, w] each, as in ``AutoencoderConfig.noise_shapes``.
        """
        if isinstance(self.network, VideoAutoencoderKL):
            recon, by_clip = self._frames_alone(self.network, x, noise[0])
            return self._pixel_loss(x, recon), self._divergence(by_clip), None, None
        return self._clip_losses(self.network, x, noise)

    def reconstruct(self, x: Tensor, noise: Sequence[Tensor]) -> Tensor:
        """The reconstruction alone, float32 [B, 3, T, H, W]."""
        if isinstance(self.network, VideoAutoencoderKL):
            return self._frames_alone(self.network, x, noise[0])[0]
        latents = self._image_latents(self.network.spatial_vae, x, noise[0])
        z, _ = self._run(self.network.encode_clip, latents, noise[1])
        return self._pixels(self.network.spatial_vae, self._run(self.network.decode_clip, z, x.shape[2]))

    def _frames_alone(self, network: VideoAutoencoderKL, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The reconstruction, and the divergence of each clip's latents [B]."""
        rows, drawn = as_rows(x).astype(self.dtype), as_rows(noise)
        moments = self._in_micro_batches(network.module.encode, rows)
        latents = draw(moments.astype(ms.float32), drawn) * network.scale_factor
        recon = self._pixels(network, as_video(latents, x.shape[0]))
        by_frame = divergence(moments.astype(ms.float32)).reshape(x.shape[0], -1)
        return recon, by_frame.mean(-1)

    def _clip_losses(self, network: VideoAutoencoderPipeline, x: Tensor, noise: Sequence[Tensor]) -> Terms:
        config, (clips, _, frames) = self.config, x.shape[:3]
        x_z = self._image_latents(network.spatial_vae, x, noise[0])
        if config.freeze_vae_2d:
            x_z = P.stop_gradient(x_z)
        z, moments = self._run(network.encode_clip, x_z.astype(self.dtype), noise[1])
        x_z_rec = self._run(network.decode_clip, z, frames).astype(ms.float32)
        rec, kl, z_rec, identity = None, None, None, None
        if config.use_real_rec_loss:
            rec = self._pixel_loss(x, self._pixels(network.spatial_vae, x_z_rec))
            kl = self._divergence(divergence(moments.astype(ms.float32)))
        if config.use_z_rec_loss:
            z_rec = per_clip(nll(x_z, x_z_rec, config.logvar_init, None, 0.0), clips)
        if config.use_image_identity_loss and frames == 1:
            identity = per_clip(nll(x_z, z.astype(ms.float32), config.logvar_init, None, 0.0), clips)
        return rec, kl, z_rec, identity

    def _pixel_loss(self, x: Tensor, recon: Tensor) -> Tensor:
        weight = self.config.perceptual_loss_weight
        distance = None if self.distance is None else self.distance(as_rows(x), as_rows(recon))
        return per_clip(nll(x, recon, self.config.logvar_init, distance, weight), x.shape[0])

    def _divergence(self, by_clip: Tensor) -> Tensor | None:
        weight = self.config.kl_loss_weight
        return by_clip * weight if weight > 0 else None

    def _image_latents(self, network: VideoAutoencoderKL, x: Tensor, noise: Tensor) -> Tensor:
        """float32 [B, C, T, h, w]"""
        moments = self._in_micro_batches(network.module.encode, as_rows(x).astype(self.dtype))
        latents = draw(moments.astype(ms.float32), as_rows(noise)) * network.scale_factor
        return as_video(latents, x.shape[0])

    def _pixels(self, network: VideoAutoencoderKL, latents: Tensor) -> Tensor:
        """float32 [B, 3, T, H, W]"""
        rows = self._in_micro_batches(network.decode_rows, as_rows(latents).astype(self.dtype))
        return as_video(rows.astype(ms.float32), latents.shape[0])

    def _in_micro_batches(self, part: Runner, rows: Tensor) -> Tensor:
        count = rows.shape[0]
        size = self._micro or count
        if size >= count:
            return self._run(part, rows)
        return P.concat([self._run(part, rows[start : start + size]) for start in range(0, count, size)])


def _call(part: Runner, *arguments: Any) -> Any:
    return part(*arguments)


def freeze_images(network: nn.Cell) -> None:
    """Parameters of the image autoencoder learn no more."""
    for name, param in network.parameters_and_names():
        if name.startswith("spatial_vae."):
            param.requires_grad = False

"""Rectified flow (Liu et al. 2022) as Open-Sora 1.2 uses it. Upstream: opensora/schedulers/rf/ (branch opensora/v1.2).

t runs from 0 (clean) to ``num_timesteps`` (noise): x_t = (1 - t/n) x + (t/n) noise, and the network predicts the
velocity x - noise in its first channels. Every random number is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as P

from models.config import DiffusionConfig
from models.diffusion.tokens import own_outputs, own_values, shares

BASE_AREA = 512 * 512
Floats = np.ndarray | Sequence[float]


def latent_frames(num_frames: Floats) -> np.ndarray:
    """Latent frames the time shift assumes, float32 [B]: five for every 17 pixel frames, or 1 for images.

    As upstream, a batch whose first sample is an image counts as images throughout. Below 17 frames upstream gets 0,
    which turns every timestep into 0; one latent frame is used instead.
    """
    frames = np.asarray(num_frames, np.float32).reshape(-1)
    if frames[0] == 1:
        return np.ones_like(frames)
    return np.maximum(np.floor(frames / np.float32(17)) * np.float32(5), np.float32(1))


def shift_timesteps(
    t: np.ndarray, num_frames: Floats, height: Floats, width: Floats, scale: float = 1.0, num_timesteps: int = 1000
) -> np.ndarray:
    """Moves float32 timesteps [B] towards noise for larger and longer videos (resolution-dependent time shift).

    u' = r u / (1 + (r - 1) u) with u = t / num_timesteps and r = sqrt(pixels / 512^2) sqrt(latent frames) scale.
    """
    u = np.asarray(t, np.float32) / np.float32(num_timesteps)
    area = np.asarray(height, np.float32) * np.asarray(width, np.float32)
    ratio = np.sqrt(area / np.float32(BASE_AREA)) * np.sqrt(latent_frames(num_frames)) * np.float32(scale)
    return ratio * u / (1 + (ratio - 1) * u) * np.float32(num_timesteps)


@dataclass(frozen=True)
class SampleStep:
    """What one sampling step saw and did: t [B], network input [B, ...], velocity [2B, ...], x_mask [B, T] or None."""

    index: int
    t: np.ndarray
    model_in: Tensor
    velocity: Tensor
    x_mask: np.ndarray | None


class RFlow:
    """Timesteps, loss and sampling under one configuration."""

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config
        self.num_timesteps = config.num_timesteps

    @property
    def draw_kind(self) -> str:
        """Which numbers :meth:`draw_timesteps` wants: ``normal`` or ``uniform`` in [0, 1)."""
        return "normal" if self.config.sample_method == "logit-normal" else "uniform"

    def draw_timesteps(self, draws: Floats, num_frames: Floats, height: Floats, width: Floats) -> np.ndarray:
        """float32 [B] timesteps from ``draws`` [B] (see :attr:`draw_kind`); sizes are frames and pixels, [B]."""
        draws = np.asarray(draws, np.float32).reshape(-1)
        method = self.config.sample_method
        if method == "logit-normal":
            logits = draws * np.float32(self.config.scale) + np.float32(self.config.loc)
            t = 1 / (1 + np.exp(-logits)) * np.float32(self.num_timesteps)
        else:
            t = draws * np.float32(self.num_timesteps)
        if method == "discrete-uniform":
            t = np.minimum(np.floor(t), np.float32(self.num_timesteps - 1))
        if self.config.use_timestep_transform:
            scale = self.config.transform_scale
            t = shift_timesteps(t, num_frames, height, width, scale, self.num_timesteps)
        return t.astype(np.float32)

    def add_noise(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x and noise [B, C, T, H, W], t [B] -> x_t."""
        keep = (1 - t.astype(ms.float32) / self.num_timesteps).reshape(-1, 1, 1, 1, 1)
        return keep * x + (1 - keep) * noise

    def noised_input(self, x_start: Tensor, t: Tensor, noise: Tensor, x_mask: Tensor | None) -> Tensor:
        """x_t with the conditioning frames (x_mask False) clean: the network's input."""
        x_t = self.add_noise(x_start, noise, t)
        if x_mask is None:
            return x_t
        return P.where(x_mask.reshape(x_mask.shape[0], 1, x_mask.shape[1], 1, 1), x_t, x_start)

    def loss(
        self,
        model: nn.Cell,
        x_start: Tensor,
        t: Tensor,
        noise: Tensor,
        y: Tensor,
        mask: Tensor | None,
        x_mask: Tensor | None,
        fps: Tensor,
        height: Tensor,
        width: Tensor,
        num_frames: Tensor | None = None,
        ar: Tensor | None = None,
        drop_ids: Tensor | None = None,
    ) -> Tensor:
        """Mean squared error of the velocity, float32 [B].

        x_start and noise [B, C, T, H, W]; t [B]; the other arguments as :class:`models.stdit.Transformer` takes them.
        With ``x_mask`` bool [B, T] the mean is over the frames with True only.
        """
        x_t = self.noised_input(x_start, t, noise, x_mask)
        out = model(x_t, t, y, mask, x_mask, fps, height, width, num_frames, ar, drop_ids)
        return self.velocity_loss(out, x_start, noise, x_mask)

    def token_loss(
        self,
        model: Any,
        x_start: Tensor,
        t: Tensor,
        noise: Tensor,
        y: Tensor,
        mask: Tensor | None,
        x_mask: Tensor | None,
        fps: Tensor,
        height: Tensor,
        width: Tensor,
        num_frames: Tensor | None = None,
        ar: Tensor | None = None,
        drop_ids: Tensor | None = None,
    ) -> Tensor:
        """The part of :meth:`loss` that this rank's tokens make, float32 [B], where ranks share a sample's tokens.

        The sum over the sequence-parallel group is :meth:`loss`; nothing is gathered for it.
        """
        x_t = self.noised_input(x_start, t, noise, x_mask)
        arguments = (y, mask, x_mask, fps, height, width, num_frames, ar, drop_ids)
        out = own_outputs(model, model.tokens(x_t, t, *arguments))
        channels = x_start.shape[1]
        difference = out[:, :channels] - own_values(model, x_start - noise)
        share = own_values(model, shares(x_start, x_mask))
        return (difference * difference * share).reshape(x_start.shape[0], -1).sum(-1)

    def velocity_loss(self, out: Tensor, x_start: Tensor, noise: Tensor, x_mask: Tensor | None) -> Tensor:
        """Per-sample loss float32 [B] of a network output [B, C or 2 C, T, H, W]."""
        b, c, frames, _, _ = x_start.shape
        difference = out[:, :c] - (x_start - noise)
        squares = difference * difference
        if x_mask is None:
            return squares.reshape(b, -1).mean(-1)
        weights = x_mask.astype(ms.float32)
        per_frame = squares.transpose(0, 2, 1, 3, 4).reshape(b, frames, -1).mean(-1)
        return (per_frame * weights).sum(-1) / weights.sum(-1)

    def schedule(self, steps: int, batch: int, discrete: bool = False) -> np.ndarray:
        """Evenly spaced timesteps from noise to clean, float32 [steps, batch], rounded to integers if ``discrete``."""
        times = [(1.0 - index / steps) * self.num_timesteps for index in range(steps)]
        if discrete:
            times = [float(round(t)) for t in times]
        return np.repeat(np.asarray(times, np.float32)[:, None], batch, axis=1)

    def sample(
        self,
        model: nn.Cell,
        z: Tensor,
        y: Tensor,
        y_null: Tensor,
        mask: Tensor | None,
        fps: Tensor,
        height: Tensor,
        width: Tensor,
        num_frames: Tensor,
        *,
        steps: int,
        guidance_scale: float,
        discrete: bool = False,
        shift: bool | None = None,
        frame_mask: np.ndarray | None = None,
        noise: Callable[[int], Tensor] | None = None,
        observe: Callable[[SampleStep], None] | None = None,
    ) -> Tensor:
        """Euler steps with classifier-free guidance from noise z [B, C, T, H, W] to a latent of the same shape.

        y and y_null [B, 1, L, channels]; mask [B, L] of the prompts, also used for the null half; num_frames [B].
        shift: time shift (with scale 1, as upstream); None takes ``use_timestep_transform`` of the configuration.
        frame_mask: float [B, T], 1 generates a frame, 0 keeps it, 0.6 keeps it until t <= 600, noises it once with
            ``noise(step)`` [B, C, T, H, W] and denoises from there.
        """
        batch = z.shape[0]
        times = self.schedule(steps, batch, discrete)
        if self.config.use_timestep_transform if shift is None else shift:
            sizes = [np.asarray(value.asnumpy()) for value in (num_frames, height, width)]
            times = np.stack([shift_timesteps(row, *sizes, num_timesteps=self.num_timesteps) for row in times])
        ends = np.concatenate([times[1:], np.zeros_like(times[:1])])
        spans = ((times - ends) / np.float32(self.num_timesteps)).astype(np.float32)
        both = P.concat((y, y_null), 0)
        before = None if frame_mask is None else np.asarray(frame_mask, np.float32) == 1
        for index, t in enumerate(times):
            kept, on = z, None
            if frame_mask is not None:
                if noise is None:
                    raise ValueError("sampling with a frame mask needs noise")
                on = np.asarray(frame_mask, np.float32) * np.float32(self.num_timesteps) >= t[:, None]
                z = P.where(_per_frame(on & ~before), self.add_noise(z, noise(index), Tensor(t)), z)
                before = on
            x_mask = None if on is None else Tensor(np.tile(on, (2, 1)))
            out = model(P.concat((z, z), 0), Tensor(np.tile(t, 2)), both, mask, x_mask, fps, height, width)
            velocity = out[:, : z.shape[1]]
            if observe is not None:
                observe(SampleStep(index, t, z, velocity, on))
            guided = velocity[batch:] + guidance_scale * (velocity[:batch] - velocity[batch:])
            z = z + guided * Tensor(spans[index]).reshape(-1, 1, 1, 1, 1)
            if on is not None:
                z = P.where(_per_frame(on), z, kept)
        return z


def _per_frame(mask: np.ndarray) -> Tensor:
    return Tensor(mask[:, None, :, None, None])

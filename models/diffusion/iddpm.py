"""Gaussian diffusion with learned variance (IDDPM, Nichol and Dhariwal 2021) as Open-Sora 1.0 and 1.1 use it.

Upstream: opensora/schedulers/iddpm/ (branches opensora/v1.0 and v1.1). The network predicts the noise (or the clean
latent) in its first channels and where the variance lies between its bounds in as many more. Every random number is an
argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor
from mindspore import ops as P

from models import ops
from models.diffusion.iddpm_tables import Tables, diffusion_tables, kept_steps, named_betas, respaced_betas

# Latents [N, C, T, H, W], steps of the full process int64 [N], x_mask bool [N, T] or None -> the network's output.
Denoise = Callable[[Tensor, Tensor, Tensor | None], Tensor]
BITS = 1.0 / math.log(2.0)


@dataclass(frozen=True)
class IDDPMOptions:
    """A process, its loss and its guidance.

    num_sampling_steps or timestep_respacing: keep only these steps (see ``kept_steps``).
    learn_sigma: False fixes the variance at its lower (``sigma_small``) or upper bound.
    use_kl: train on the variational bound alone. rescale_learned_sigmas: the bound weighs steps / 1000 of itself.
    predict_xstart: the network predicts the clean latent.
    precision: of the tables. guided_channels: how many channels guidance moves, None all of them. v1.0 has ``float64``
        and 3 (its fourth latent channel is not guided), v1.1 ``float32`` and None.
    """

    diffusion_steps: int = 1000
    num_sampling_steps: int | None = None
    timestep_respacing: str | Sequence[int] | None = None
    noise_schedule: str = "linear"
    use_kl: bool = False
    sigma_small: bool = False
    predict_xstart: bool = False
    learn_sigma: bool = True
    rescale_learned_sigmas: bool = False
    precision: str = "float64"
    guided_channels: int | None = 3

    def kept(self) -> list[int]:
        """The steps of the full process that are kept. ValueError where both ways to name them are used."""
        if self.num_sampling_steps is not None:
            if self.timestep_respacing:
                raise ValueError("give num_sampling_steps or timestep_respacing, not both")
            return kept_steps(self.diffusion_steps, str(self.num_sampling_steps))
        return kept_steps(self.diffusion_steps, self.timestep_respacing or [self.diffusion_steps])


@dataclass(frozen=True)
class SampleStep:
    """What one sampling step saw: its step of the full process, the network's input [B, ...], x_mask [B, T] or None."""

    timestep: int
    model_in: Tensor
    x_mask: np.ndarray | None


@dataclass(frozen=True)
class Prediction:
    """Mean, log variance and clean latent that an output stands for, [B, C, T, H, W] each."""

    mean: Tensor
    log_variance: Tensor
    x_start: Tensor


class IDDPM:
    """Forward process, losses and sampling under one set of options. Steps t are int64 [B] among the kept ones."""

    def __init__(self, options: IDDPMOptions | None = None) -> None:
        self.options = options or IDDPMOptions()
        self.timestep_map = np.array(self.options.kept(), np.int64)
        betas = respaced_betas(
            named_betas(self.options.noise_schedule, self.options.diffusion_steps), self.timestep_map.tolist()
        )
        self.tables: Tables = diffusion_tables(betas, self.options.precision)
        self.num_timesteps = len(betas)
        self._wide = ops.device_target() == "CPU"
        rows = {name: table.astype(np.float32) for name, table in vars(self.tables).items()}
        rows["log_betas"] = np.log(self.tables.betas).astype(np.float32)
        rows["fixed_log_variance"] = rows["posterior_log_variance_clipped"]
        if not self.options.sigma_small and self.num_timesteps > 1:
            largest = np.append(self.tables.posterior_variance[1], self.tables.betas[1:])
            rows["fixed_log_variance"] = np.log(largest).astype(np.float32)
        # One tensor and places in it: compiled functions take these as constants, a mapping of tensors they do not.
        self._rows = {name: place for place, name in enumerate(rows)}
        self._on_device = Tensor(np.stack(list(rows.values())))
        self._kept = Tensor(self.timestep_map)

    def at(self, table: str, t: Tensor) -> Tensor:
        """The entries of a table at steps t [B]: float32 [B, 1, 1, 1, 1]."""
        return P.gather(self._on_device[self._rows[table]], t, 0).reshape(-1, 1, 1, 1, 1)

    def _exact(self, x: Tensor) -> Tensor:
        """x for exponentials and logarithms: in float64 on the CPU, whose float32 kernels are off by up to 4e-6."""
        return x.astype(ms.float64) if self._wide else x

    def _deviation(self, log_variance: Tensor) -> Tensor:
        return P.exp(0.5 * self._exact(log_variance)).astype(ms.float32)

    def steps(self, t: Tensor) -> Tensor:
        """Steps held as float32 [B] -> int64 [B]."""
        return t.astype(ms.int64)

    def model_timesteps(self, t: Tensor) -> Tensor:
        """The steps of the full process, which is what the network is told: int64 [B]."""
        return P.gather(self._kept, t, 0)

    def add_noise(self, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """q(x_t | x_0): x_start and noise [B, C, T, H, W] -> x_t."""
        kept = self.at("sqrt_alphas_cumprod", t) * x_start
        return kept + self.at("sqrt_one_minus_alphas_cumprod", t) * noise

    def posterior_mean(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Mean of q(x_{t-1} | x_t, x_0). Its variance is in the tables ``posterior_…``."""
        return self.at("posterior_mean_coef1", t) * x_start + self.at("posterior_mean_coef2", t) * x_t

    def noised_input(self, x_start: Tensor, t: Tensor, noise: Tensor, x_mask: Tensor | None) -> Tensor:
        """x_t, the network's input; frames with x_mask False have the noise of step 0 only."""
        x_t = self.add_noise(x_start, t, noise)
        if x_mask is None:
            return x_t
        return P.where(_per_frame(x_mask), x_t, self.add_noise(x_start, P.zeros_like(t), noise))

    def predict(self, out: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
        """p(x_{t-1} | x_t) from a network output [B, 2 C, T, H, W] (C without learned variance)."""
        return Prediction(*self._predicted(out, x_t, t))

    def _predicted(self, out: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The fields of a :class:`Prediction`: compiled functions make no objects, and would lose gradients in them."""
        channels = x_t.shape[1]
        mean_part = out[:, :channels]
        if self.options.learn_sigma:
            if out.shape[1] != 2 * channels:
                raise ValueError(f"learned variance takes {2 * channels} channels from the network, not {out.shape[1]}")
            fraction = (out[:, channels:] + 1) / 2
            smallest = self.at("posterior_log_variance_clipped", t)
            log_variance = fraction * self.at("log_betas", t) + (1 - fraction) * smallest
        else:
            log_variance = self.at("fixed_log_variance", t) + P.zeros_like(x_t)
        if self.options.predict_xstart:
            x_start = mean_part
        else:
            scaled = self.at("sqrt_recip_alphas_cumprod", t) * x_t
            x_start = scaled - self.at("sqrt_recipm1_alphas_cumprod", t) * mean_part
        return self.posterior_mean(x_start, x_t, t), log_variance, x_start

    def training_losses(
        self,
        denoise: Denoise,
        x_start: Tensor,
        t: Tensor,
        noise: Tensor,
        x_mask: Tensor | None = None,
        weights: np.ndarray | None = None,
    ) -> dict[str, Tensor]:
        """``loss`` and its parts ``mse`` and ``vb``, float32 [B] each.

        x_start and noise [B, C, T, H, W]; x_mask bool [B, T]: means are over frames with True only. weights [steps] of
        the squared error (see ``SpeedSampling``).
        """
        x_t = self.noised_input(x_start, t, noise, x_mask)
        out = denoise(x_t, self.model_timesteps(t), x_mask)
        return self.loss_terms(out, x_start, x_t, t, noise, x_mask, weights)

    def loss_terms(
        self,
        out: Tensor,
        x_start: Tensor,
        x_t: Tensor,
        t: Tensor,
        noise: Tensor,
        x_mask: Tensor | None = None,
        weights: np.ndarray | None = None,
    ) -> dict[str, Tensor]:
        """The losses of a network output by name, float32 [B] each."""
        parts = self.loss_parts(out, x_start, x_t, t, noise, x_mask, None, weights)
        return {name: part for name, part in zip(("loss", "mse", "vb"), parts, strict=True) if part is not None}

    def loss_parts(
        self,
        out: Tensor,
        x_start: Tensor,
        x_t: Tensor,
        t: Tensor,
        noise: Tensor,
        x_mask: Tensor | None = None,
        share: Tensor | None = None,
        weights: np.ndarray | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The loss, its squared error and its bound. The bound teaches the variance only: the mean is fixed in it.

        share: None, or how much every value counts in the mean of its sample (:mod:`models.diffusion.tokens`).
        """
        if self.options.use_kl:
            if x_mask is not None:
                raise ValueError("training on the variational bound alone does not know frame masks")
            return self.variational_bound(out, x_start, x_t, t, None, share) * self.num_timesteps, None, None
        channels = x_start.shape[1]
        mean_part = out[:, :channels]
        squares = ((x_start if self.options.predict_xstart else noise) - mean_part) ** 2
        if weights is not None:
            squares = P.gather(Tensor(weights.astype(np.float32)), t, 0).reshape(-1, 1, 1, 1, 1) * squares
        mse = _mean(squares, x_mask, share)
        if not self.options.learn_sigma:
            return mse, mse, None
        frozen = P.concat((P.stop_gradient(mean_part), out[:, channels:]), 1)
        vb = self.variational_bound(frozen, x_start, x_t, t, x_mask, share)
        if self.options.rescale_learned_sigmas:
            vb = vb * (self.num_timesteps / 1000.0)
        return mse + vb, mse, vb

    def variational_bound(
        self,
        out: Tensor,
        x_start: Tensor,
        x_t: Tensor,
        t: Tensor,
        x_mask: Tensor | None = None,
        share: Tensor | None = None,
    ) -> Tensor:
        """A step's term of the bound in bits per value, [B]: the divergence from the posterior; at t = 0 the negative
        log likelihood of x_start under a Gaussian cut into 255ths."""
        mean, log_variance, _ = self._predicted(out, x_t, t)
        true_log_variance = self._exact(self.at("posterior_log_variance_clipped", t))
        true_mean = self._exact(self.posterior_mean(x_start, x_t, t))
        mean, log_variance = self._exact(mean), self._exact(log_variance)
        divergence = _mean(_gaussian_divergence(true_mean, true_log_variance, mean, log_variance), x_mask, share)
        likelihood = _mean(_log_likelihood(self._exact(x_start), mean, 0.5 * log_variance), x_mask, share)
        return (P.where(t == 0, -likelihood, divergence) * BITS).astype(ms.float32)

    def sample(
        self,
        denoise: Denoise,
        z: Tensor,
        *,
        guidance_scale: float,
        noise: Callable[[int], Tensor],
        frame_mask: np.ndarray | None = None,
        ddim: bool = False,
        eta: float = 0.0,
        observe: Callable[[SampleStep], None] | None = None,
    ) -> Tensor:
        """All steps with classifier-free guidance from noise z [B, C, T, H, W] to a latent of the same shape.

        denoise sees the latents twice, [2 B, ...]: first for the prompts, then for the null captions. noise(n) [B, ...]
        is the n-th draw: one a step, two with a frame mask (to noise a frame again, then for the step itself).
        frame_mask: float [B, T], 1 generates a frame, 0 keeps it; with 0.6 of n steps a frame is kept until step
            int(0.6 n), noised there once and denoised from there.
        ddim: deterministic steps for eta 0 (Song et al. 2021), ancestral ones for eta 1. It takes no frame mask.
        """
        if ddim and frame_mask is not None:
            raise ValueError("DDIM sampling does not know frame masks")
        batch, draw = z.shape[0], 0
        first = None if frame_mask is None else (np.float32(frame_mask) * np.float32(self.num_timesteps)).astype(int)
        for step in reversed(range(self.num_timesteps)):
            t = Tensor(np.full(batch, step, np.int64))
            kept, x_mask = z, None
            if first is not None:
                z = P.where(_per_frame(Tensor(first == step)), self.add_noise(z, t, noise(draw)), z)
                x_mask = first > step
                draw += 1
            timestep = int(self.timestep_map[step])
            twice = None if x_mask is None else Tensor(np.tile(x_mask, (2, 1)))
            if observe is not None:
                observe(SampleStep(timestep, z, x_mask))
            out = denoise(P.concat((z, z), 0), Tensor(np.full(2 * batch, timestep, np.int64)), twice)
            prediction = self.predict(self.guide(out, guidance_scale, z.shape[1]), z, t)
            z = self._ddim_step(prediction, z, t, eta) if ddim else prediction.mean
            if step > 0 and (eta or not ddim):
                z = z + (self._ddim_sigma(t, eta) if ddim else self._deviation(prediction.log_variance)) * noise(draw)
            draw += 1
            if first is not None:
                z = P.where(_per_frame(Tensor(first < step)), kept, z)
        return z

    def guide(self, out: Tensor, scale: float, channels: int) -> Tensor:
        """Outputs [2 B, ...] for prompts and null captions -> [B, ...]; the channels not guided are the prompts'."""
        half = out.shape[0] // 2
        guided = channels if self.options.guided_channels is None else self.options.guided_channels
        prompted, null = out[:half], out[half:, :guided]
        return P.concat((null + scale * (prompted[:, :guided] - null), prompted[:, guided:]), 1)

    def _ddim_step(self, prediction: Prediction, x_t: Tensor, t: Tensor, eta: float) -> Tensor:
        """Equation 12 of DDIM without its noise."""
        scaled = self.at("sqrt_recip_alphas_cumprod", t) * x_t - prediction.x_start
        noise = scaled / self.at("sqrt_recipm1_alphas_cumprod", t)
        before = self.at("alphas_cumprod_prev", t)
        return prediction.x_start * P.sqrt(before) + P.sqrt(1 - before - self._ddim_sigma(t, eta) ** 2) * noise

    def _ddim_sigma(self, t: Tensor, eta: float) -> Tensor:
        now, before = self.at("alphas_cumprod", t), self.at("alphas_cumprod_prev", t)
        return eta * P.sqrt((1 - before) / (1 - now)) * P.sqrt(1 - now / before)


def _per_frame(mask: Tensor) -> Tensor:
    return mask.reshape(mask.shape[0], 1, mask.shape[1], 1, 1)


def _mean(values: Tensor, x_mask: Tensor | None, share: Tensor | None = None) -> Tensor:
    """Mean of [B, C, T, H, W] over all but the batch; over frames with x_mask True only, or as ``share`` says."""
    batch, _, frames, _, _ = values.shape
    if share is not None:
        return (values * share.astype(values.dtype)).reshape(batch, -1).sum(-1)
    if x_mask is None:
        return values.reshape(batch, -1).mean(-1)
    by_frame = values.transpose(0, 2, 1, 3, 4).reshape(batch, frames, -1)
    weights = x_mask.astype(values.dtype)
    total = (by_frame * weights.expand_dims(2)).sum(1).sum(1)
    return total / (weights.sum(1) * by_frame.shape[2])


def _gaussian_divergence(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """Kullback-Leibler divergence of two diagonal Gaussians, in nats."""
    spread = -1.0 + log_variance2 - log_variance1 + P.exp(log_variance1 - log_variance2)
    return 0.5 * (spread + (mean1 - mean2) ** 2 * P.exp(-log_variance2))


def _normal_cdf(x: Tensor) -> Tensor:
    """Approximate cumulative distribution of the standard normal (the one behind GELU's tanh form)."""
    return 0.5 * (1.0 + P.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))


def _log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log probability in nats of x's bin of width 2 / 255 under a Gaussian; the outermost bins are open."""
    centered, inverse = x - mean, P.exp(-log_scale)
    above = _normal_cdf(inverse * (centered + 1.0 / 255.0))
    below = _normal_cdf(inverse * (centered - 1.0 / 255.0))
    inner = P.where(x > 0.999, _log(1.0 - below), _log(above - below))
    return P.where(x < -0.999, _log(above), inner)


def _log(probability: Tensor) -> Tensor:
    return P.log(P.clamp(probability, min=1e-12))

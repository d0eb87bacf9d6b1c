"""The process a configuration names, as training sees it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from mindspore import Tensor

from models.config import DiffusionConfig, ModelConfig
from models.diffusion.iddpm import IDDPM, IDDPMOptions
from models.diffusion.rflow import Floats, RFlow
from models.diffusion.tokens import own_outputs, own_values, shares


class Process(Protocol):
    """What training needs of a diffusion process. Every random number is an argument."""

    @property
    def draw_kind(self) -> str:
        """Which numbers :meth:`draw_timesteps` wants: ``normal`` or ``uniform`` in [0, 1)."""

    def draw_timesteps(self, draws: Floats, num_frames: Floats, height: Floats, width: Floats) -> np.ndarray:
        """float32 [B] timesteps from ``draws`` [B]; sizes are frames and pixels, [B]."""

    def loss(self, model: Any, x_start: Tensor, t: Tensor, noise: Tensor, *conditions: Tensor | None) -> Tensor:
        """float32 [B]. x_start and noise [B, C, T, H, W], t float32 [B]; ``conditions`` as the model takes them:
        y, mask, x_mask, fps, height, width, num_frames, ar, drop_ids."""

    def token_loss(self, model: Any, x_start: Tensor, t: Tensor, noise: Tensor, *conditions: Tensor | None) -> Tensor:
        """The part of :meth:`loss` that this rank's tokens make, where ranks share a sample's tokens."""


class IDDPMTraining:
    """IDDPM as a :class:`Process`: the steps that are kept are drawn evenly. t is a whole number, held as float32."""

    draw_kind = "uniform"

    def __init__(self, options: IDDPMOptions) -> None:
        self.process = IDDPM(options)

    def draw_timesteps(self, draws: Floats, num_frames: Floats, height: Floats, width: Floats) -> np.ndarray:
        steps = self.process.num_timesteps
        scaled = np.floor(np.asarray(draws, np.float64).reshape(-1) * steps)
        return np.minimum(scaled, steps - 1).astype(np.float32)

    def loss(
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
        num_frames: Tensor,
        ar: Tensor,
        drop_ids: Tensor | None = None,
    ) -> Tensor:
        """Squared error of the noise and the variational bound, as the options combine them, float32 [B]."""
        process, steps = self.process, self.process.steps(t)
        x_t = process.noised_input(x_start, steps, noise, x_mask)
        timestep = process.model_timesteps(steps)
        out = model(x_t, timestep, y, mask, x_mask, fps, height, width, num_frames, ar, drop_ids)
        return process.loss_parts(out, x_start, x_t, steps, noise, x_mask)[0]

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
        num_frames: Tensor,
        ar: Tensor,
        drop_ids: Tensor | None = None,
    ) -> Tensor:
        process, steps = self.process, self.process.steps(t)
        x_t = process.noised_input(x_start, steps, noise, x_mask)
        timestep = process.model_timesteps(steps)
        tokens = model.tokens(x_t, timestep, y, mask, x_mask, fps, height, width, num_frames, ar, drop_ids)
        share = own_values(model, shares(x_start, x_mask))
        own = [own_values(model, value) for value in (x_start, x_t, noise)]
        return process.loss_parts(own_outputs(model, tokens), own[0], own[1], steps, own[2], None, share)[0]


def build(config: DiffusionConfig, model: ModelConfig) -> Process:
    """The process that ``config`` describes, for a model that predicts what ``model`` says."""
    return RFlow(config) if config.type == "rflow" else IDDPMTraining(iddpm_options(config, model))


def iddpm_options(
    config: DiffusionConfig,
    model: ModelConfig,
    num_sampling_steps: int | None = None,
    guided_channels: int | None = None,
) -> IDDPMOptions:
    """Options of IDDPM for a model. num_sampling_steps: evenly spaced ones, in place of ``timestep_respacing``.

    guided_channels: how many channels guidance moves when sampling, None for all. Open-Sora 1.0 guides three.
    """
    precision = config.precision
    if precision == "auto":
        precision = "float32" if model.type == "STDiT2" else "float64"
    return IDDPMOptions(
        diffusion_steps=config.num_timesteps,
        num_sampling_steps=num_sampling_steps,
        timestep_respacing=None if num_sampling_steps else config.timestep_respacing,
        noise_schedule=config.noise_schedule,
        use_kl=config.use_kl,
        sigma_small=config.sigma_small,
        predict_xstart=config.predict_xstart,
        learn_sigma=model.pred_sigma,
        rescale_learned_sigmas=config.rescale_learned_sigmas,
        precision=precision,
        guided_channels=guided_channels,
    )

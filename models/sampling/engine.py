"""From requests to latents: one process, one network, guidance, conditioning frames, loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor
from mindspore import ops as P

from models.config import DiffusionConfig
from models.config.sample import SampleConfig
from models.diffusion.iddpm import IDDPM
from models.diffusion.process import iddpm_options
from models.diffusion.rflow import RFlow
from models.exits import BAD_CONFIG, PayloadError
from models.sampling.mask_strategy import append_generated, apply_mask_strategy
from models.sampling.metadata import multi_resolution_info
from models.sampling.noise import latent_noise, step_noise
from models.sampling.requests import Request
from models.sampling.shapes import Shape
from models.sampling.texts import Embedded, Texts
from models.stdit import Transformer

# Open-Sora 1.0 guides the first three of its four channels.
_GUIDED_V1_0 = 3


class Engine:
    """Samples batches of requests with one network. ``steps``: network evaluations a clip takes."""

    def __init__(
        self,
        config: SampleConfig,
        model: Transformer,
        shape: Shape,
        texts: Texts,
        align: int | None,
        compiled: bool = False,
    ) -> None:
        """align: what starts of conditioning frames snap to. compiled: the network, once for each shape of a batch."""
        self._config, self._model, self._shape, self._texts, self._align = config, model, shape, texts, align
        model.set_train(False)
        self._network = _compiled(model) if compiled else model
        diffusion = config.diffusion or DiffusionConfig()
        self._flow = RFlow(diffusion) if config.sampler == "rflow" else None
        self._iddpm = None if self._flow is not None else _iddpm(config, diffusion)
        self.steps = config.num_sampling_steps if self._iddpm is None else self._iddpm.num_timesteps

    def clips(
        self,
        requests: Sequence[Request],
        references: Sequence[Sequence[np.ndarray]],
        step: Callable[[], None] = lambda: None,
    ) -> list[np.ndarray]:
        """Latents float32 [B, C, T, h, w] of every loop. references: encoded ones of each request, [C, t, h, w].

        step: called after every network evaluation. PayloadError where frames asked for do not exist.
        """
        held = [list(found) for found in references]
        strategies = [request.strategy for request in requests]
        made: list[np.ndarray] = []
        for loop in range(self._config.loop):
            if loop > 0:
                length, edit = self._config.condition_frame_length, self._config.condition_frame_edit
                strategies = append_generated(held, strategies, list(made[-1]), loop, length, edit)
            noise = latent_noise(requests, loop, (self._model.in_channels, *self._shape.latent))
            start, frame_mask = self._conditioned(noise, held, strategies, loop)
            made.append(self._sample(requests, loop, start, frame_mask, step))
        return made

    def _conditioned(
        self, noise: np.ndarray, held: Sequence[list[np.ndarray]], strategies: Sequence[str], loop: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Noise with conditioning frames in their places, and which frames those are; no mask where there are none."""
        try:
            z, mask = apply_mask_strategy(noise, held, strategies, loop, self._align, self._config.version)
        except ValueError as error:
            raise PayloadError(
                BAD_CONFIG, "conditioning frames cannot be placed", where="sample.mask_strategy", why=str(error),
                next_step="correct the strategy; starts and lengths count latent frames",
            ) from None  # fmt: skip
        return z, None if mask is None or (mask == 1).all() else mask

    def _sample(
        self,
        requests: Sequence[Request],
        loop: int,
        start: np.ndarray,
        frame_mask: np.ndarray | None,
        step: Callable[[], None],
    ) -> np.ndarray:
        count, shape = len(requests), self._shape
        y, y_null, mask = self._text(requests, loop)
        info = multi_resolution_info(
            "OpenSora", count, (shape.height, shape.width), shape.frames, self._config.fps
        )  # fmt: skip
        conditions = {name: Tensor(value) for name, value in info.items()}

        def noise(draw: int) -> Tensor:
            return Tensor(step_noise(requests, loop, draw, start.shape[1:]))

        z, scale = Tensor(start), self._config.guidance_scale
        if self._flow is not None:
            sizes = [conditions[name] for name in ("fps", "height", "width", "num_frames")]
            result = self._flow.sample(
                self._network,
                z,
                y,
                y_null,
                mask,
                *sizes,
                steps=self.steps,
                guidance_scale=scale,
                shift=self._config.use_timestep_transform,
                frame_mask=frame_mask,
                noise=noise,
                observe=lambda _: step(),
            )
        else:
            assert self._iddpm is not None
            both = P.concat((y, y_null), 0)

            def denoise(x: Tensor, timestep: Tensor, x_mask: Tensor | None) -> Tensor:
                sizes = [conditions[name] for name in ("fps", "height", "width", "num_frames", "ar")]
                return self._network(x, timestep, both, mask, x_mask, *sizes)

            result = self._iddpm.sample(
                denoise,
                z,
                guidance_scale=scale,
                noise=noise,
                frame_mask=frame_mask,
                ddim=self._config.sampler == "ddim",
                eta=self._config.eta,
                observe=lambda _: step(),
            )
        latents: np.ndarray = result.astype(ms.float32).asnumpy()
        return latents

    def _text(self, requests: Sequence[Request], loop: int) -> tuple[Tensor, Tensor, Tensor]:
        """y and y_null [B, 1, L, C], and the masks of both, [2 B, L].

        The learned null caption has the prompt's mask, as upstream; a negative prompt has its own.
        """
        embedder = self._model.y_embedder
        length = self._model.config.model_max_length
        prompts = [self._texts.prompt(request, loop).fitted(length) for request in requests]
        learned = embedder.y_embedding.asnumpy().astype(np.float32)
        nulls = []
        for request, prompt in zip(requests, prompts, strict=True):
            negative = self._texts.negative(request)
            nulls.append(Embedded(learned, prompt.mask) if negative is None else negative.fitted(length))
        y, y_null = (Tensor(np.stack([text.y for text in texts])[:, None]) for texts in (prompts, nulls))
        return y, y_null, Tensor(np.stack([text.mask for text in (*prompts, *nulls)]))


def _compiled(model: Transformer) -> Any:
    """The network as one graph; eager operators cost several times their arithmetic where they are small."""

    def evaluate(
        x: Tensor,
        timestep: Tensor,
        y: Tensor,
        mask: Tensor,
        x_mask: Tensor | None,
        fps: Tensor,
        height: Tensor,
        width: Tensor,
        num_frames: Tensor | None = None,
        ar: Tensor | None = None,
    ) -> Tensor:
        return model(x, timestep, y, mask, x_mask, fps, height, width, num_frames, ar)

    return ms.jit(evaluate)


def _iddpm(config: SampleConfig, diffusion: DiffusionConfig) -> IDDPM:
    """The process with the steps that sampling keeps. PayloadError for steps that cannot be kept."""
    assert config.model is not None
    guided = config.guidance_channels
    if guided is None and config.model.type == "STDiT":
        guided = min(_GUIDED_V1_0, config.model.in_channels)
    steps = None if diffusion.timestep_respacing else config.num_sampling_steps
    try:
        return IDDPM(iddpm_options(diffusion, config.model, steps, guided))
    except ValueError as error:
        raise PayloadError(
            BAD_CONFIG, "the steps of sampling cannot be kept", where="sample.num_sampling_steps", why=str(error),
            next_step=f"at most {diffusion.num_timesteps} of them",
        ) from None  # fmt: skip

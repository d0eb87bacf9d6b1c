"""The process that is learned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from models.config.base import Positive, Section


class DiffusionConfig(Section):
    """Rectified flow (1.2) or IDDPM (1.0 and 1.1). Upstream: opensora/schedulers/{rf,iddpm}.

    num_timesteps: of the whole process, both kinds. rflow: sample_method to scale. iddpm: the rest, as upstream's
    ``IDDPM`` takes them; whether the variance is learned is the model's ``pred_sigma``.

    timestep_respacing: the steps that are kept (``ddim25``, ``10,15,20``, ``100``); training uses all as a rule.
    precision: of IDDPM's tables. ``auto``: what published weights have seen, float32 for STDiT2 and float64 otherwise.
    """

    type: Literal["rflow", "iddpm"] = "rflow"
    num_timesteps: Positive = 1000
    sample_method: Literal["uniform", "discrete-uniform", "logit-normal"] = "logit-normal"
    use_timestep_transform: bool = True
    transform_scale: Annotated[float, Field(gt=0)] = 1.0
    loc: float = 0.0
    scale: Annotated[float, Field(gt=0)] = 1.0
    noise_schedule: Literal["linear", "squaredcos_cap_v2"] = "linear"
    timestep_respacing: str | None = None
    predict_xstart: bool = False
    sigma_small: bool = False
    use_kl: bool = False
    rescale_learned_sigmas: bool = False
    precision: Literal["auto", "float32", "float64"] = "auto"

    @model_validator(mode="after")
    def _enough_steps(self) -> DiffusionConfig:
        if self.type == "iddpm" and self.noise_schedule == "linear" and self.num_timesteps < 21:
            raise ValueError("the linear schedule needs at least 21 num_timesteps: its noise grows beyond 1 with fewer")
        return self

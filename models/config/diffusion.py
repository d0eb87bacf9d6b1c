"""The process that is learned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from models.config.base import Positive, Section


class DiffusionConfig(Section):
    """Rectified flow. Upstream: opensora/schedulers/rf/rectified_flow.py."""

    type: Literal["rflow"] = "rflow"
    num_timesteps: Positive = 1000
    sample_method: Literal["uniform", "discrete-uniform", "logit-normal"] = "logit-normal"
    use_timestep_transform: bool = True
    transform_scale: Annotated[float, Field(gt=0)] = 1.0
    loc: float = 0.0
    scale: Annotated[float, Field(gt=0)] = 1.0

"""The diffusion transformers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from models.config.base import Positive, Probability, Section


class ModelConfig(Section):
    """The diffusion transformer (STDiT3). Upstream: opensora/models/stdit/stdit3.py, ``STDiT3Config``."""

    type: Literal["STDiT3"] = "STDiT3"
    in_channels: Positive = 4
    patch_size: tuple[Positive, Positive, Positive] = (1, 2, 2)
    input_sq_size: Positive = 512
    hidden_size: Positive = 1152
    depth: Positive = 28
    num_heads: Positive = 16
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    class_dropout_prob: Probability = 0.1
    pred_sigma: bool = True
    drop_path: Literal[0.0] = 0.0
    caption_channels: Positive = 4096
    model_max_length: Positive = 300
    qk_norm: bool = True
    only_train_temporal: bool = False
    freeze_y_embedder: bool = False
    skip_y_embedder: bool = False

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        head_dim = self.hidden_size // self.num_heads
        if head_dim % 2:
            raise ValueError(f"hidden_size / num_heads is {head_dim}; rotary embeddings need an even number")
        if self.hidden_size % 4:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of 4 (2-D position table)")
        return self

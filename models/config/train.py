"""What ``python -m models.train`` is told."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from models.config.autoencoder import AutoencoderConfig
from models.config.base import Dtype, Positive, Probability
from models.config.data import DataConfig
from models.config.diffusion import DiffusionConfig
from models.config.inputs import latent_problems, text_problems
from models.config.model import ModelConfig
from models.config.running import (
    CheckpointConfig,
    Jit,
    LogConfig,
    LossScaleConfig,
    OptimizerConfig,
    TaskConfig,
    one_length,
)
from models.config.text import TextConfig
from models.config.together import contradictions
from models.config.validation import ValidationConfig

MASK_NAMES = (
    "identity", "random", "interpolate", "quarter_random", "quarter_head", "quarter_tail", "quarter_head_tail",
    "image_random", "image_head", "image_tail", "image_head_tail",
)  # fmt: skip


class TrainConfig(TaskConfig):
    """Everything the payload needs to train.

    init_from: weights to start with: a file of any program, a folder, or a checkpoint. allow_partial: they may lack
    parameters, or hold others; without it only what upstream's start from PixArt leaves out may be missing.
    recompute: activations of blocks are computed again in the backward pass: true of all, false of none, n of every
    n-th one. text: who embeds captions during training, where data.text_embeddings does not say that they are embedded
    already. steps, epochs: how long; passes over the data where ``epochs`` is set, which wants ``steps: null``.
    """

    model: ModelConfig = ModelConfig()
    init_from: str | None = None
    allow_partial: bool = False
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    text: TextConfig | None = None
    data: DataConfig = DataConfig()
    mask_ratios: dict[str, Probability] | None = None
    diffusion: DiffusionConfig = DiffusionConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loss_scale: LossScaleConfig = LossScaleConfig()
    validation: ValidationConfig | None = None
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = 0.9999
    steps: Positive | None = 1000
    epochs: Positive | None = None
    batch_size: Positive = 1
    gradient_accumulation_steps: Positive = 1
    dtype: Dtype = "bf16"
    recompute: bool | Positive = True
    jit: Jit = "auto"
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @property
    def total_steps(self) -> int:
        return self.steps or 0

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        return one_length(self)

    @field_validator("mask_ratios")
    @classmethod
    def _mask_names(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if value is None:
            return None
        unknown = [name for name in value if name not in MASK_NAMES]
        if unknown:
            raise ValueError(f"unknown mask {unknown[0]!r}; known: {', '.join(MASK_NAMES)}")
        if sum(v for k, v in value.items() if k != "identity") > 1 + 1e-9:
            raise ValueError("probabilities of masks add up to more than 1")
        return value


def unrunnable(config: TrainConfig) -> list[tuple[tuple[str, ...], str]]:
    """What renders but cannot run: (path below ``train``, why)."""
    found: list[tuple[tuple[str, ...], str]] = []
    if not config.autoencoder.has_weights and not config.data.latents:
        why = "names no weights, without which latents are noise; give a file, or data.latents, or set type to identity"
        found.append((("autoencoder", "pretrained"), why))
    found += contradictions(config.model, config.diffusion, config.data, config.mask_ratios)
    found += text_problems(config.text, config.data, config.model)
    found += latent_problems(config.data, config.autoencoder, config.model)
    layout = config.layout
    if config.jit == "on" and (layout.sp > 1 or layout.zero == 3):
        what = f"sp {layout.sp}" if layout.sp > 1 else "zero 3"
        found.append((("jit",), f"ranks talk inside the model under {what}, which runs eagerly; set jit to auto"))
    return found

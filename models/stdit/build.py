"""A transformer from its configuration."""

from __future__ import annotations

from typing import Any

from models.config import ModelConfig
from models.exits import BAD_CONFIG, PayloadError
from models.stdit.base import Transformer
from models.stdit.initial import initialize
from models.stdit.stdit import STDiT
from models.stdit.stdit2 import STDiT2
from models.stdit.stdit3 import STDiT3

# Defaults of the original constructors where they are not those of published weights.
_UPSTREAM: dict[str, dict[str, Any]] = {
    "STDiT2": {"qk_norm": False, "input_sq_size": 32, "model_max_length": 120},
}


def create(config: ModelConfig, latent_size: tuple[int, int, int] | None = None, dtype: str = "fp32") -> Transformer:
    """The transformer with parameters of zero, to be loaded. ``latent_size`` (T, H, W) is STDiT's; others ignore it.

    PayloadError where STDiT has no size, or one that is not in whole patches.
    """
    if config.type == "STDiT3":
        return STDiT3(config, dtype)
    if config.type == "STDiT2":
        return STDiT2(config, dtype)
    if latent_size is None:
        raise PayloadError(
            BAD_CONFIG, "STDiT needs samples of one size", where="model.type",
            why="its position tables are made for it",
            next_step="set image_size with num_frames, or resolution with aspect_ratio; buckets need STDiT2 or STDiT3",
        )  # fmt: skip
    try:
        return STDiT(config, latent_size, dtype)
    except ValueError as error:
        raise PayloadError(
            BAD_CONFIG, "the latents' size does not fit the model", where="model.patch_size", why=str(error),
            next_step="choose an image_size that is a multiple of the autoencoder's factor times the patch",
        ) from None  # fmt: skip


def build(
    config: ModelConfig, latent_size: tuple[int, int, int] | None = None, *, seed: int = 0, dtype: str = "fp32"
) -> Transformer:
    """The transformer with initial weights that depend on ``seed`` and the parameters' names alone. See ``create``."""
    model = create(config, latent_size, dtype)
    initialize(model, seed)
    return model


def build_model(config: ModelConfig, seed: int, dtype: str = "fp32") -> Transformer:
    """:func:`build` where no size is needed."""
    return build(config, seed=seed, dtype=dtype)


def config_from_init(init: dict[str, Any], kind: str = "STDiT3") -> ModelConfig:
    """ModelConfig from constructor arguments of the original classes; their device switches are dropped."""
    known = set(ModelConfig.model_fields) - {"type"}
    given = {key: value for key, value in init.items() if key in known}
    return ModelConfig(**{"type": kind, **_UPSTREAM.get(kind, {}), **given})

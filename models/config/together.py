"""What model, process, masks and data say against one another."""

from __future__ import annotations

from collections.abc import Mapping

from models.config.data import DataConfig
from models.config.diffusion import DiffusionConfig
from models.config.model import ModelConfig

Problem = tuple[tuple[str, ...], str]


def contradictions(
    model: ModelConfig, diffusion: DiffusionConfig, data: DataConfig, masks: Mapping[str, float] | None
) -> list[Problem]:
    """(path below the task, why) of everything that cannot be trained together."""
    found: list[Problem] = []
    if model.type == "STDiT":
        sized = data.image_size is not None or (data.resolution is not None and data.aspect_ratio is not None)
        if data.bucket_config is not None and not sized:
            why = "STDiT is made for samples of one size; set image_size, or take STDiT2 or STDiT3"
            found.append((("data", "bucket_config"), why))
        if data.max_image_size is not None:
            why = "clips in their own sizes need STDiT2 or STDiT3; STDiT is made for one size"
            found.append((("data", "max_image_size"), why))
        if masks:
            found.append((("mask_ratios",), "STDiT knows no conditioning frames; take STDiT2 or STDiT3"))
    if diffusion.type == "iddpm" and diffusion.use_kl and masks:
        found.append((("mask_ratios",), "diffusion.use_kl trains on the variational bound alone, without frame masks"))
    if diffusion.type == "iddpm" and diffusion.use_kl and not model.pred_sigma:
        found.append((("diffusion", "use_kl"), "the variational bound needs a model with pred_sigma"))
    return found

"""From ``sample.yaml`` to a configuration in which nothing is left open. Imports no MindSpore."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from models.config import AutoencoderConfig, DiffusionConfig, ModelConfig, Section
from models.config.sample import SampleConfig, sample_problems
from models.config.text import TextConfig
from models.exits import BAD_CONFIG, PayloadError
from models.sampling.weights import Source, find_weights
from models.settings import read_task_config


def read_sample_config(path: Path) -> SampleConfig:
    """The configuration in ``path``. PayloadError(BAD_CONFIG) lists all problems that it alone shows."""
    config = read_task_config(path, SampleConfig)
    _refuse(config, str(path))
    return config


def complete(config: SampleConfig, root: Path) -> tuple[SampleConfig, Source | None]:
    """The configuration with what the run that made the weights knows, and where they are (None: not needed).

    PayloadError where something that the stage needs is still open, or does not fit together now.
    """
    source = find_weights(root / config.weights) if config.weights else None
    known = _inherited(source) if source is not None else {}
    config = config.model_copy(update={name: value for name, value in known.items() if getattr(config, name) is None})
    if config.diffusion is None and config.model is not None:
        config = config.model_copy(
            update={"diffusion": DiffusionConfig(type="rflow" if config.version == "v1.2" else "iddpm")}
        )
    if config.resolution is None and config.image_size is None and source is not None:
        config = config.model_copy(update=_inherited_size(source.config))
    if config.num_frames is None and source is not None:
        frames = source.config.get("data", {}).get("num_frames")
        config = config.model_copy(update={"num_frames": frames if _fixed_size(source.config) else None})
    _refuse(config, "sample")
    _check_whole(config)
    return config, source


def _refuse(config: SampleConfig, where: str) -> None:
    problems = [f"{'.'.join(place)}: {why}" for place, why in sample_problems(config)]
    if problems:
        raise PayloadError(
            BAD_CONFIG, "configuration cannot be sampled", where=where, why="\n    ".join(["", *problems]),
            next_step="correct it",
        )  # fmt: skip


def _inherited(source: Source) -> dict[str, Any]:
    """What the configuration of a training says of the parts that sampling needs as well."""
    told = source.config
    kinds: dict[str, type[Section]] = {
        "model": ModelConfig, "autoencoder": AutoencoderConfig, "diffusion": DiffusionConfig, "text": TextConfig
    }  # fmt: skip
    found: dict[str, Any] = {}
    for name, kind in kinds.items():
        if told.get(name) is None:
            continue
        try:
            found[name] = kind.model_validate(_placed(told[name], source))
        except ValidationError as error:
            raise PayloadError(
                BAD_CONFIG, f"{name} of the run that made the weights is not understood", where=f"sample.{name}",
                why=str(error), next_step=f"say {name} in the configuration",
            ) from None  # fmt: skip
    return found


def _placed(part: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """A part whose files lie where the training found them: its relative paths start at its run directory."""
    placed = dict(part)
    for name in ("pretrained", "pretrained_2d"):
        there = source.path.parents[1] / str(part.get(name) or "")
        if part.get(name) and there.exists():
            placed[name] = str(there.absolute())
    return placed


def _fixed_size(told: Mapping[str, Any]) -> bool:
    data = told.get("data") or {}
    return bool(data.get("image_size") or (data.get("resolution") and data.get("aspect_ratio")))


def _inherited_size(told: Mapping[str, Any]) -> dict[str, Any]:
    data = told.get("data") or {}
    if data.get("image_size"):
        return {"image_size": tuple(data["image_size"])}
    return {name: data.get(name) for name in ("resolution", "aspect_ratio")} if _fixed_size(told) else {}


def _check_whole(config: SampleConfig) -> None:
    """PayloadError names the first thing that the stage needs and nobody said."""
    needed: list[tuple[str, str]] = []
    if config.stage != "decode":
        needed += [("model", "sizes of the network, or weights from a run directory")]
    if config.stage in ("text", "all") and not config.text_embeddings:
        needed += [("text", "the text encoder, or text_embeddings")]
    if config.stage != "text":
        needed += [("autoencoder", "how pixels become latents")]
    if config.stage in ("latents", "all"):
        needed += [
            ("num_frames", "frames of a clip, 1 for images"),
            ("size", "image_size, or resolution and aspect_ratio"),
        ]
    for name, what in needed:
        if getattr(config, name) is None:
            raise PayloadError(BAD_CONFIG, f"nothing says {name}", where=f"sample.{name}", why=what, next_step="add it")
    if config.model is not None and config.autoencoder is not None and config.stage in ("latents", "all"):
        wanted, given = config.model.in_channels, config.autoencoder.latent_channels
        if wanted != given:
            raise PayloadError(
                BAD_CONFIG, f"the autoencoder has {given} channels of latents, the model {wanted}",
                where="sample.model.in_channels", next_step="name the autoencoder the model was trained with",
            )  # fmt: skip

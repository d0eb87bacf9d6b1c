"""From ``train.yaml`` to the configuration of a run, with every problem named; and what the data must be cut to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import ValidationError

from models.config import DataConfig, Section, TrainConfig, unrunnable
from models.config.tasks import task_of
from models.data import aspect
from models.data.bucket import Buckets, Shape
from models.data.decode import Header
from models.exits import BAD_CONFIG, PayloadError
from models.recipe import RecipeError, expand

Config = TypeVar("Config", bound=Section)


def read_config(path: Path) -> TrainConfig:
    """The configuration of a training in ``path``. PayloadError(BAD_CONFIG) lists all problems."""
    config = read_task_config(path, TrainConfig)
    problems = [f"{'.'.join(place)}: {why}" for place, why in unrunnable(config)] + _conflicts(config)
    if problems:
        raise _bad(path, "configuration cannot be trained", "\n    ".join(["", *problems]))
    return config


def read_task_config(path: Path, kind: type[Config]) -> Config:
    """The configuration in ``path``, laid over the recipe it names, as ``kind``. PayloadError(BAD_CONFIG)."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise _bad(path, "configuration is not a mapping", "")
        return kind.model_validate(expand(values, task_of(kind)))
    except FileNotFoundError:
        raise _bad(path, "configuration does not exist", "", "name it with --config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _bad(path, "configuration cannot be read", str(error)) from None
    except yaml.YAMLError as error:
        raise _bad(path, "configuration is not valid YAML", str(error)) from None
    except RecipeError as error:
        raise _bad(path, "recipe cannot be used", str(error)) from None
    except ValidationError as error:
        lines = [f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()]
        raise _bad(path, f"{len(lines)} problems in the configuration", "\n    ".join(["", *lines])) from None


def fixed_shape(data: DataConfig) -> Shape | None:
    """The one shape of all samples, or None where buckets, cached latents or ``max_image_size`` choose.

    ``image_size`` and ``resolution`` win over buckets.

    PayloadError(BAD_CONFIG) where nothing says how large samples are.
    """
    if data.image_size is not None:
        return Shape(data.num_frames, *data.image_size)
    try:
        if data.resolution is not None and data.aspect_ratio is not None:
            return Shape(data.num_frames, *aspect.image_size(data.resolution, data.aspect_ratio))
        if data.bucket_config is not None:
            Buckets(data.bucket_config)
            return None
        if data.latents or data.max_image_size is not None:
            return None
    except KeyError as error:
        raise PayloadError(
            BAD_CONFIG, str(error.args[0]), where="train.data", next_step="correct the resolution"
        ) from None
    raise PayloadError(
        BAD_CONFIG,
        "nothing says how large samples are",
        where="train.data",
        next_step="set image_size, or resolution with aspect_ratio, or bucket_config, or max_image_size",
    )


def unfit(data: DataConfig, shape: Shape | None) -> Callable[[Header], str]:
    """Why a clip with some header cannot be trained on; empty when it can."""
    if shape is not None:

        def too_short(header: Header) -> str:
            return "" if header.frames >= shape.frames else f"has {header.frames} frames, {shape.frames} are needed"

        return too_short
    buckets = Buckets(data.bucket_config or {})

    def no_bucket(header: Header) -> str:
        if buckets.can_take(header.frames, header.height, header.width, data.frame_interval):
            return ""
        return f"fits no bucket ({header.frames} frames of {header.height}x{header.width})"

    return no_bucket


def _conflicts(config: TrainConfig) -> list[str]:
    problems = []
    if config.model.in_channels != config.autoencoder.latent_channels:
        problems.append(
            f"model.in_channels: is {config.model.in_channels}, "
            f"the autoencoder gives {config.autoencoder.latent_channels}"
        )
    heads, layout = config.model.num_heads, config.layout
    if layout.sp_kind == "ulysses" and heads % layout.sp:
        fitting = ", ".join(str(size) for size in range(1, heads + 1) if heads % size == 0)
        problems.append(
            f"layout.sp: ulysses shares {heads} heads among {layout.sp} ranks; {fitting} would work, or dsp"
        )
    if config.mask_ratios and config.model.patch_size[0] != 1:
        problems.append("model.patch_size: frame masks need patches of one frame")
    if config.model.skip_y_embedder:
        problems.append("model.skip_y_embedder: training embeds captions itself")
    return problems


def _bad(path: Path, what: str, why: str, next_step: str = "correct the file") -> PayloadError:
    return PayloadError(BAD_CONFIG, what, where=str(path), why=why, next_step=next_step)

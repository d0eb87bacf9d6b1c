"""What a training's configuration makes of its clips: which can be used, in which shapes, in which order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from models.config import TrainConfig
from models.data.bucket import Buckets, Choice, Shape
from models.data.catalogue import Clip
from models.data.decode import Header
from models.data.fit import FitShapes, fit_size
from models.data.latents import SETTINGS, LatentShapes, read_settings
from models.data.order import Choose, Chooser, ClipSize, DealtOrder, FixedOrder, Order, by_size
from models.exits import BAD_DATA, PayloadError
from models.settings import unfit


def unfit_rule(config: TrainConfig, shape: Shape | None) -> Callable[[Header], str]:
    """Why a clip (or, with cached latents, a file of them) cannot be trained on; empty when it can."""
    data = config.data
    if data.latents:
        return _latent_shapes(config, shape).problem
    if shape is None and data.max_image_size is not None:
        return unfit(data, Shape(data.num_frames, 1, 1))
    return unfit(data, shape)


def check_latents(config: TrainConfig, run_dir: Path) -> None:
    """PayloadError where the cached latents say that another autoencoder made them."""
    if not config.data.latents:
        return
    folder = run_dir / config.data.latents
    made = read_settings(folder).get("autoencoder", {})
    own = config.autoencoder.model_dump(mode="json")
    keys = ["type"] + (["micro_frame_size", "temporal"] if own["type"] == "OpenSoraVAE_V1_2" else [])
    other = [key for key in keys if key in made and made[key] != own[key]]
    if other:
        key = other[0]
        raise PayloadError(
            BAD_DATA,
            "cached latents come from another autoencoder",
            where=str(folder / SETTINGS),
            why=f"{key} was {made[key]} there, train.autoencoder.{key} is {own[key]}",
            next_step="cache latents with the autoencoder of this training, or configure that one",
        )


def common_shape(config: TrainConfig, clips: Sequence[Clip]) -> Shape | None:
    """The shape of all samples where the clips alone decide on it and all have the same; else None."""
    data = config.data
    if data.bucket_config is not None:
        return None
    found: set[Shape] = set()
    if data.latents:
        rule = _latent_shapes(config, None)
        found = {rule.shape_of(file.size, data.num_frames) for clip in clips for file in clip.latents}
    elif data.max_image_size is not None:
        multiple = _multiple(config)
        sizes = {fit_size(clip.header.height, clip.header.width, data.max_image_size, multiple) for clip in clips}
        found = {Shape(data.num_frames, *size) for size in sizes}
    return next(iter(found)) if len(found) == 1 else None


def make_order(config: TrainConfig, replicas: int, clips: Sequence[Clip], shape: Shape | None) -> Order:
    """The order of samples. replicas: micro batches of all ranks that make a step."""
    if shape is not None:
        return FixedOrder(config.seed, len(clips), shape, config.batch_size * replicas)
    return DealtOrder(config.seed, len(clips), chooser(config, clips, shape), replicas)


def chooser(config: TrainConfig, clips: Sequence[Clip], shape: Shape | None) -> Choose:
    """The shape that a use of a clip gets, and its batch size; ``shape`` is that of all, if there is one."""
    data = config.data
    if shape is not None:
        only = Choice(str(shape), shape, config.batch_size)
        return lambda clip, draws: only
    if data.latents:
        rule = _latent_shapes(config, None)
        return lambda clip, draws: rule.choose(clips[clip].latents, draws)
    rule_of_size: Chooser = Buckets(data.bucket_config or {})
    if data.max_image_size is not None:
        rule_of_size = FitShapes(data.max_image_size, _multiple(config), data.num_frames, config.batch_size)
    sizes = [ClipSize(clip.header.frames, clip.header.height, clip.header.width) for clip in clips]
    return by_size(sizes, rule_of_size, data.frame_interval)


def _latent_shapes(config: TrainConfig, shape: Shape | None) -> LatentShapes:
    data = config.data
    buckets = Buckets(data.bucket_config) if data.bucket_config is not None and shape is None else None
    return LatentShapes(config.autoencoder, data.num_frames, data.frame_interval, config.batch_size, shape, buckets)


def _multiple(config: TrainConfig) -> int:
    """Pixels of a side that a token covers."""
    patch, latent = config.model.patch_size, config.autoencoder.patch_size
    return max(patch[1] * latent[1], patch[2] * latent[2])

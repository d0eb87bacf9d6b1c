"""Checks of ``train`` that need no cluster: sizes of clips, the autoencoder's channels, memory of a device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from models.config import DataConfig, TrainConfig
from models.cost import Memory, tokens, training_memory
from models.data.aspect import RATIO_NAMES, TABLES, image_size, sizes
from ostrain.spec.problems import did_you_mean

Found = Iterator[tuple[str, str]]


def data_problems(train: TrainConfig) -> list[tuple[str, str]]:
    """(path below ``train``, message) of everything that does not fit together."""
    return [*_paths(train), *_channels(train), *_sizes(train.data), *_buckets(train.data)]


def _paths(train: TrainConfig) -> Found:
    data = train.data
    if not data.annotations:
        yield "data.annotations", "train.data.annotations is missing: the CSV that lists clips and captions"
    if not data.text_embeddings and train.text is None:
        message = "train.data.text_embeddings is missing: the folder of the captions' embeddings"
        yield "data.text_embeddings", f"{message} (or train.text, which makes them while it trains)"


def _channels(train: TrainConfig) -> Found:
    needed, given = train.autoencoder.latent_channels, train.model.in_channels
    if needed != given:
        yield (
            "model.in_channels",
            f"autoencoder {train.autoencoder.type} makes {needed} channels, the model takes {given}; "
            f"set train.model.in_channels to {needed}",
        )


def _sizes(data: DataConfig) -> Found:
    ways = {
        "data.image_size": data.image_size is not None,
        "data.resolution": data.resolution is not None or data.aspect_ratio is not None,
        "data.bucket_config": data.bucket_config is not None,
        "data.max_image_size": data.max_image_size is not None,
    }
    given = [path for path, is_given in ways.items() if is_given]
    if not given and not data.latents:
        yield "data", "says no size of clips: give image_size, or resolution with aspect_ratio, or bucket_config"
    if len(given) > 1:
        said = " and ".join(path.removeprefix("data.") for path in given)
        others = " ".join(f"--set train.{path}=null" for path in given[1:])
        yield given[0], f"{said} both say the size of clips; keep one (to drop what a recipe says: {others})"
    if data.resolution is not None and data.resolution not in TABLES:
        yield "data.resolution", _unknown("resolution", data.resolution, list(TABLES))
    elif data.aspect_ratio is not None and data.aspect_ratio not in RATIO_NAMES:
        yield "data.aspect_ratio", _unknown("aspect ratio", data.aspect_ratio, list(RATIO_NAMES))
    elif (data.resolution is None) != (data.aspect_ratio is None):
        there, missing = ("resolution", "aspect_ratio") if data.resolution else ("aspect_ratio", "resolution")
        yield f"data.{there}", f"{there} needs {missing} beside it"
    elif data.resolution is not None and data.aspect_ratio is not None:
        try:
            image_size(data.resolution, data.aspect_ratio)
        except KeyError as error:
            yield "data.aspect_ratio", str(error.args[0])


def _unknown(what: str, word: str, known: list[str]) -> str:
    return f"unknown {what} {word!r}{did_you_mean(word, known)}; known: {', '.join(known)}"


def _buckets(data: DataConfig) -> Found:
    used = False
    for resolution, entries in (data.bucket_config or {}).items():
        if resolution not in TABLES:
            yield f"data.bucket_config.{resolution}", _unknown("resolution", resolution, list(TABLES))
        for frames, (keep, batch_size) in entries.items():
            kept = min(keep) if isinstance(keep, tuple) else keep
            used = used or (kept > 0 and batch_size != 0)
            if kept > 0 and not batch_size:
                path = f"data.bucket_config.{resolution}.{frames}"
                yield (
                    path,
                    f"bucket {resolution} x {frames} frames is used (probability {kept:g}) but has no batch size",
                )
    if data.bucket_config is not None and not used:
        yield "data.bucket_config", "no bucket is ever used: every probability or batch size is 0"


@dataclass(frozen=True)
class Load:
    """One shape of batch that training meets. ``tokens``: of the smallest sample of that shape."""

    path: str
    name: str
    tokens: int
    batch_size: int


def loads(train: TrainConfig) -> list[Load]:
    """Every shape of batch that ``train.data`` brings about, with the place that asks for it."""
    data = train.data
    if data.bucket_config is None and data.image_size is None and data.resolution is None:
        return []  # clips or their latents have sizes of their own
    if data.bucket_config is None:
        size = data.image_size or image_size(data.resolution or "", data.aspect_ratio or "")
        path = "data.image_size" if data.image_size else "data.resolution"
        name = f"{size[0]} x {size[1]} pixels x {data.num_frames} frames"
        return [Load(path, name, tokens(train, data.num_frames, *size), train.batch_size)]
    found = []
    for resolution, entries in data.bucket_config.items():
        for frames, (keep, batch_size) in entries.items():
            if (min(keep) if isinstance(keep, tuple) else keep) > 0 and batch_size:
                # The smallest of the resolution's shapes, so that the bound stays a lower one for every clip.
                least = min(tokens(train, frames, *size) for size in set(sizes(resolution).values()))
                name = f"bucket {resolution} x {frames} frames"
                found.append(Load(f"data.bucket_config.{resolution}.{frames}", name, least, batch_size))
    return found


def memory_problems(train: TrainConfig, world: int, dtype: str, limit: int, origin: str) -> Found:
    """Batches that cannot fit into ``limit`` bytes (said by ``origin``) of a device; see ``models.cost``."""
    states = training_memory(train, 1, world, dtype)
    if states.states >= limit:
        ways = "raise layout.zero" if train.layout.zero < 3 else "use more devices"
        parts = f"weights {_size(states.weights)}, gradients {_size(states.gradients)}, AdamW {_size(states.optimizer)}"
        yield (
            "layout.zero",
            f"the model alone needs {_size(states.states)} on a device ({parts}, EMA {_size(states.ema)}), "
            f"{origin} allows {_size(limit)}; {ways}",
        )
        return
    for load in loads(train):
        memory = training_memory(train, load.tokens, world, dtype)
        if memory.total(load.batch_size) > limit:
            yield load.path, _too_large(train, load, memory, limit, origin)


def _too_large(train: TrainConfig, load: Load, memory: Memory, limit: int, origin: str) -> str:
    largest = memory.largest_batch(limit)
    advice = f"the largest batch that fits is {largest}" if largest else "not even a batch of 1 fits"
    if not largest:
        advice += f"; raise layout.sp above {train.layout.sp}" + ("" if train.recompute else " or set recompute")
    return (
        f"{load.name} x batch {load.batch_size} needs at least {_size(memory.total(load.batch_size))} on a device, "
        f"{origin} allows {_size(limit)}; {advice}"
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.1f} MB"

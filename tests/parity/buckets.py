"""Ratio tables, bucket decisions and the batch sampler."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from models.config import BucketConfig, DataConfig
from models.data import aspect
from models.data.bucket import Buckets, Choice, sampler_batches
from tests.parity.cases import Case, CaseError

_SAMPLER = re.compile(r"drop(\d+)_world(\d+)_rank(\d+)(?:_resume_after_(\d+))?")
_VARIANT = re.compile(r"(shipped|forced)_interval(\d+)")


def tables(case: Case) -> dict[str, Any]:
    """All recorded tables and decisions of the case, computed."""
    shipped = [name for name in aspect.TABLES if case.version != "v1.1" or name not in aspect.ADDED_IN_V1_2]
    names = list(case.expected.get("aspect_ratios", shipped))
    unknown = sorted(set(names) - set(shipped))
    if unknown:
        raise CaseError(f"{case.version} has no resolutions {', '.join(unknown)}")
    columns = case.expected.get("closest_ratio_columns", names)
    return (
        _sizes(case, names)
        | {"closest_ratio_columns": [name for name in columns if name in aspect.TABLES]}
        | {"closest_ratio": [_closest(video, columns) for video in case.given["videos"]]}
        | {
            "buckets": {
                name: _buckets(case, name, expected) for name, expected in case.expected.get("buckets", {}).items()
            }
        }
        | {"sampler": _sampler(case, list(case.expected.get("sampler", {})))}
    )


def _sizes(case: Case, names: Sequence[str]) -> dict[str, Any]:
    ratios = aspect.RATIOS[case.version]
    found, missing = {}, []
    for name in names:
        for ratio in aspect.RATIO_NAMES:
            try:
                found[f"{name}|{ratio}"] = aspect.image_size(name, ratio)
            except KeyError:
                missing.append(f"{name}|{ratio}")
    return {
        "aspect_ratios": {name: {"num_pixels": aspect.num_pixels(name), "table": aspect.sizes(name)} for name in names},
        "aspect_ratio_map": aspect.RATIO_NAMES,
        "image_size": found,
        "image_size_missing": missing,
        "num_frames_map": {key: aspect.num_frames(key) for key in case.expected.get("num_frames_map", {})},
        "recomputed_tables": {
            key: aspect.computed_sizes(int(key), ratios) for key in case.expected.get("recomputed_tables", {})
        },
    }


def _closest(video: Sequence[int], columns: Sequence[str]) -> list[int]:
    found = []
    for name in columns:
        found.append(list(aspect.sizes(name)).index(aspect.closest_ratio(video[1], video[2], name)))
    return found


def _config(values: dict[str, Any], variant: str) -> BucketConfig:
    def forced(keep: Any) -> Any:
        return [forced(part) for part in keep] if isinstance(keep, list) else float(keep != 0)

    table = {
        resolution: {
            frames: [forced(keep) if variant == "forced" else keep, size] for frames, (keep, size) in row.items()
        }
        for resolution, row in values.items()
    }
    config = DataConfig.model_validate({"bucket_config": table}).bucket_config
    if config is None:
        raise CaseError("a bucket configuration is empty")
    return config


def _choices(case: Case, buckets: Buckets, interval: int, videos: int | None = None) -> list[Choice | None]:
    """The bucket of every video; the generator is seeded per video and pair of resolution and frames, as upstream."""
    base = case.given["base_seed"]

    def choose(row: int, video: Sequence[int]) -> Choice | None:
        seed = base + row * buckets.count
        return buckets.choose(
            video[0], video[1], video[2], interval, lambda number: np.random.default_rng(seed + number)
        )

    return [choose(row, video) for row, video in enumerate(case.given["videos"][:videos])]


def _buckets(case: Case, name: str, expected: dict[str, Any]) -> dict[str, Any]:
    values = case.given["bucket_configs"][name]
    buckets = Buckets(_config(values, "shipped"))
    computed: dict[str, Any] = {
        "num_bucket": buckets.count,
        "bucket_index": {key: {str(e.frames): e.number for e in row} for key, row in buckets.entries.items()},
        "order": {key: [entry.frames for entry in row] for key, row in buckets.entries.items()},
    }
    for key in expected:
        variant = _VARIANT.fullmatch(key)
        if variant:
            choices = _choices(case, Buckets(_config(values, variant[1])), int(variant[2]))
            computed[key] = _indexed([_entry(choice) for choice in choices])
    return computed


def _entry(choice: Choice | None) -> dict[str, Any] | None:
    if choice is None:
        return None
    shape = choice.shape
    thw = [shape.frames, shape.height, shape.width]
    return {"bucket": choice.name, "thw": thw, "batch_size": choice.batch_size}


def _indexed(entries: list[dict[str, Any] | None]) -> dict[str, Any]:
    """Distinct entries in order of appearance, and where each video's is."""
    table: list[dict[str, Any] | None] = []
    places: dict[str, int] = {}
    index = []
    for entry in entries:
        key = "" if entry is None else entry["bucket"]
        if key not in places:
            places[key] = len(table)
            table.append(entry)
        index.append(places[key])
    return {"table": table, "index": index}


def _sampler(case: Case, names: Sequence[str]) -> dict[str, Any]:
    if not names:
        return {}
    values = case.given["bucket_configs"][case.config["sampler_config"]]
    small = {
        resolution: {frames: [keep, None if size is None else 1 + size % 4] for frames, (keep, size) in row.items()}
        for resolution, row in values.items()
    }
    choices = _choices(case, Buckets(_config(small, "shipped")), 1, case.config["sampler_videos"])
    computed = {}
    for name in names:
        options = _SAMPLER.fullmatch(name)
        if options is None:
            raise CaseError(f"unknown sampler scenario {name!r}")
        drop, world, rank = (int(options[group]) for group in (1, 2, 3))
        batches = sampler_batches(choices, rank, world, bool(drop), int(options[4] or 0))
        computed[name] = [
            [f"{row}-{shape.frames}-{shape.height}-{shape.width}" for row in rows] for shape, rows in batches
        ]
    return computed

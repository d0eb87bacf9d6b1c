"""The bucket rule against decisions recorded from the original, and the tables it rests on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.config import DataConfig
from models.data import aspect
from models.data.bucket import Buckets, Choice

DATA = Path(__file__).parents[1] / "data" / "models" / "buckets_v1_2.json"
SHARED = Path(__file__).parents[3] / "shared" / "golden" / "07a_buckets_v1_2"


def load() -> dict[str, Any]:
    return json.loads(DATA.read_text())


def config(values: dict[str, Any], force: bool) -> Any:
    def forced(keep: Any) -> Any:
        return [1.0 if p else 0.0 for p in keep] if isinstance(keep, list) else float(bool(keep))

    table = {
        resolution: {frames: [forced(keep) if force else keep, size] for frames, (keep, size) in entries.items()}
        for resolution, entries in values.items()
    }
    return DataConfig.model_validate({"bucket_config": table}).bucket_config


def decide(buckets: Buckets, video: list[int], interval: int, seed: int) -> Choice | None:
    frames, height, width, _ = video
    return buckets.choose(frames, height, width, interval, lambda number: np.random.default_rng(seed + number))


def as_list(choice: Choice | None) -> list[Any] | None:
    if choice is None:
        return None
    return [choice.name, choice.shape.frames, choice.shape.height, choice.shape.width, choice.batch_size]


@pytest.mark.parametrize("name", ["stage1", "stage2", "stage3", "adapt"])
@pytest.mark.parametrize("variant", ["shipped", "forced"])
@pytest.mark.parametrize("interval", [1, 3])
def test_decisions_of_the_original(name: str, variant: str, interval: int) -> None:
    data = load()
    buckets = Buckets(config(data["bucket_configs"][name], variant == "forced"))
    expected = data["buckets"][name]
    assert buckets.count == expected["num_bucket"]
    numbers = {name: {str(e.frames): e.number for e in entries} for name, entries in buckets.entries.items()}
    assert numbers == expected["bucket_index"]
    seeds = [data["base_seed"] + row * buckets.count for row in range(len(data["videos"]))]
    got = [as_list(decide(buckets, video, interval, seed)) for video, seed in zip(data["videos"], seeds, strict=True)]
    assert got == expected[f"{variant}_interval{interval}"]


def test_closest_ratios_of_the_original() -> None:
    data = load()
    for video, row in zip(data["videos"], data["closest_ratio"], strict=True):
        for resolution, index in zip(data["closest_ratio_columns"], row, strict=True):
            names = list(aspect.sizes(resolution))
            assert names.index(aspect.closest_ratio(video[1], video[2], resolution)) == index


def test_a_clip_is_called_unfit_only_when_no_draw_can_place_it() -> None:
    data = load()
    buckets = Buckets(config(data["bucket_configs"]["adapt"], False))
    for number, video in enumerate(data["videos"]):
        placed = any(decide(buckets, video, 1, seed * 1000 + number) for seed in range(40))
        assert buckets.can_take(*video[:3], 1) >= placed
    assert not buckets.can_take(200, 60, 60, 1)


def test_image_sizes_by_name() -> None:
    assert aspect.image_size("240p", "9:16") == (240, 426)
    assert aspect.image_size("720p", "9:16") == (720, 1280)
    with pytest.raises(KeyError, match="unknown resolution '241p'"):
        aspect.image_size("241p", "9:16")
    with pytest.raises(KeyError, match="unknown aspect ratio"):
        aspect.image_size("240p", "7:7")
    with pytest.raises(KeyError, match="has no size for"):
        aspect.image_size("256", "3:8")


def test_all_recorded_decisions_where_the_golden_cases_are_present() -> None:
    if not SHARED.is_dir():
        assert load()["videos"]  # the small copy above has been checked
        return
    inputs = json.loads((SHARED / "inputs.json").read_text())
    outputs = json.loads((SHARED / "outputs.json").read_text())
    for resolution, entry in outputs["aspect_ratios"].items():
        assert aspect.num_pixels(resolution) == entry["num_pixels"]
        assert {k: list(v) for k, v in aspect.sizes(resolution).items()} == entry["table"]
    for name, values in inputs["bucket_configs"].items():
        buckets, expected = Buckets(config(values, False)), outputs["buckets"][name]["shipped_interval1"]
        for row, video in enumerate(inputs["videos"]):
            entry = expected["table"][expected["index"][row]]
            want = None if entry is None else [entry["bucket"], *entry["thw"], entry["batch_size"]]
            assert as_list(decide(buckets, video, 1, inputs["base_seed"] + row * buckets.count)) == want

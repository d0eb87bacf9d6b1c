"""The bucket rule against decisions recorded from the original, and the tables it rests on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.config import DataConfig
from models.data import aspect
from models.data.bucket import Buckets, Choice, Shape, bucket_statistics, sampler_batches

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


def test_computed_sizes_are_even_and_of_their_ratio() -> None:
    for version in ("v1.1", "v1.2"):
        for ratio, (height, width) in aspect.computed_sizes(230400, aspect.RATIOS[version]).items():
            assert (height % 2, width % 2) == (0, 0)
            assert height / width == pytest.approx(float(ratio), rel=0.02)
            assert height * width == pytest.approx(230400, rel=0.02)
    last = {version: list(aspect.computed_sizes(230400, ratios))[-1] for version, ratios in aspect.RATIOS.items()}
    assert last == {"v1.1": "2.08", "v1.2": "1.85"}


def test_lengths_by_name() -> None:
    assert [aspect.num_frames(name) for name in ("4s", "16x", "17", 8)] == [102, 816, 17, 8]
    with pytest.raises(ValueError, match="unknown length '4m'"):
        aspect.num_frames("4m")


def choices(*names: str | None, batch_size: int = 2) -> list[Choice | None]:
    found: list[Choice | None] = []
    for name in names:
        shape = None if name is None else Shape(int(name.split("/")[1]), *aspect.sizes(name.split("/")[0])["1.00"])
        found.append(None if name is None or shape is None else Choice(name, shape, batch_size))
    return found


SMALL, LONG, LARGE = "144p/1/1.00", "144p/51/1.00", "240p/1/1.00"


def test_statistics_of_buckets() -> None:
    found = bucket_statistics(choices(SMALL, LONG, None, SMALL, LARGE, SMALL))
    assert found.by_shape == {"240p/1": [1, 0], "144p/51": [1, 0], "144p/1": [3, 1]}
    assert list(found.by_shape) == ["240p/1", "144p/51", "144p/1"]
    assert found.by_ratio == {"1.00": [5, 1]}
    assert (found.samples, found.batches, found.dropped, found.buckets) == (5, 1, 1, 3)


def test_the_sampler_of_the_original_fills_up_or_drops() -> None:
    clips = choices(SMALL, LARGE, SMALL, SMALL, LARGE)

    def rows(rank: int, world: int, drop_last: bool, first: int = 0) -> list[list[int]]:
        return [batch for _, batch in sampler_batches(clips, rank, world, drop_last, first)]

    assert rows(0, 1, True) == [[0, 2], [1, 4]]
    assert rows(0, 1, False) == [[0, 2], [3, 0], [1, 4]]
    assert rows(0, 1, False, first=2) == [[1, 4]]
    assert [rows(rank, 2, True) for rank in (0, 1)] == [[[0, 2]], [[1, 4]]]
    # The last round repeats the first batch, of whose bucket nothing is left.
    assert [rows(rank, 2, False) for rank in (0, 1)] == [[[0, 2], [1, 4]], [[3, 0], []]]


def test_the_sampler_of_the_original_loses_a_bucket_with_less_than_half_a_batch() -> None:
    clips = choices(SMALL, LARGE, SMALL, batch_size=4)
    assert [rows for _, rows in sampler_batches(clips, 0, 1, drop_last=False)] == [[0, 2, 0, 2]]
    with pytest.raises(ValueError, match="no batch size"):
        sampler_batches(choices(SMALL, batch_size=0), 0, 1, drop_last=True)

"""The data of the demonstration, and whether its judge sees what is there."""

from __future__ import annotations

import csv
from pathlib import Path

import av
import numpy as np
import pytest

from demos.shapes import dataset
from demos.shapes.judge import look
from demos.shapes.scenes import COLOURS, DIRECTIONS, SHAPES, Scene, frames_of, write_clip

QUICKSTART = Path(__file__).parents[2] / "jobs" / "quickstart"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("colour", COLOURS)
def test_the_judge_sees_what_was_drawn(colour: str, direction: str, shape: str) -> None:
    seen = look(frames_of(Scene(colour, direction, shape), np.random.default_rng(3)))
    assert (seen.colour, seen.direction) == (colour, direction)


def test_the_judge_sees_it_through_noise_and_compression(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    frames = frames_of(Scene("blue", "up", "circle"), random).astype(float) + random.normal(0, 8, (17, 32, 32, 3))
    write_clip(tmp_path / "a.mp4", np.clip(frames, 0, 255).astype(np.uint8))
    with av.open(str(tmp_path / "a.mp4")) as container:
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    seen = look(decoded)
    assert (seen.colour, seen.direction) == ("blue", "up")


def test_nothing_is_read_into_noise_grey_or_stillness() -> None:
    random = np.random.default_rng(0)
    grey = np.full((17, 32, 32, 3), 90, np.uint8)
    assert look(grey).colour is None
    still = np.repeat(frames_of(Scene("red", "left", "square"), random)[:1], 17, 0)
    assert (look(still).colour, look(still).direction) == ("red", None)
    noise = random.integers(0, 255, (17, 32, 32, 3), np.uint8)
    assert look(noise).direction is None


def test_the_data_set_keeps_pairs_back(tmp_path: Path) -> None:
    counts = dataset.make(tmp_path, 40, QUICKSTART)
    assert counts == {"train": 44, "held_out": 8, "prompts": 20}
    with (tmp_path / "train.csv").open() as file:
        rows = list(csv.DictReader(file))
    captions = [row["caption"] for row in rows if not row["video"].startswith("real/")]
    assert len(captions) == 40 and len({row["video"] for row in rows}) == 44
    for colour, direction in dataset.HELD_OUT:
        assert not any(colour in caption and direction in caption for caption in captions)
        assert any(colour in caption for caption in captions) and any(direction in caption for caption in captions)
    for row in rows:
        with av.open(str(tmp_path / "videos" / row["video"])) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == 17 and frames[0].shape == (32, 32, 3)
    assert len((tmp_path / "prompts.csv").read_text().splitlines()) == 21


def test_the_same_seed_makes_the_same_clips(tmp_path: Path) -> None:
    scene = Scene("green", "down", "triangle")
    one, other = (frames_of(scene, np.random.default_rng(5)) for _ in range(2))
    assert (one == other).all()
    assert (one != frames_of(scene, np.random.default_rng(6))).any()

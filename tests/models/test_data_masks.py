"""Frame masks and windows against what the original can draw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.data.frames import frame_numbers, window
from models.data.masks import choose_mask, draw_mask, frame_mask, mask_name, mask_ratios, random_mask

DATA: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "models" / "masks_v1_2.json").read_text())


@pytest.mark.parametrize("case", sorted(DATA["sets"]))
def test_masks_stay_inside_the_original_set(case: str) -> None:
    name, _, frames = case.partition("/T")
    allowed = DATA["sets"][case]
    random = np.random.default_rng(7)
    if isinstance(allowed, dict):
        with pytest.raises(ValueError):
            frame_mask(name, int(frames), random)
        return
    drawn = {"".join("01"[int(bit)] for bit in frame_mask(name, int(frames), random)) for _ in range(400)}
    assert drawn <= set(allowed)
    assert len(drawn) == len(allowed)


def test_selection_is_cumulative_in_the_order_given() -> None:
    selection = DATA["selection"]
    zero = np.random.default_rng(0)
    for draw, mask in selection["draw_to_mask"]:
        name = choose_mask(selection["ratios"], draw)
        if name.startswith("quarter"):
            # Recorded with the smallest size a draw can give.
            assert mask.count("0") == 2 if name.endswith("head_tail") else mask.count("0") == 1
        else:
            assert "".join("01"[int(bit)] for bit in frame_mask(name, 12, zero)) == mask


def test_random_mask_always_learns_something() -> None:
    for seed in range(300):
        assert frame_mask("random", 3, np.random.default_rng(seed)).any()


def test_masks_that_cannot_be_are_no_masks() -> None:
    random = np.random.default_rng(0)
    assert draw_mask({"quarter_head": 1.0}, 3, random).all()
    assert draw_mask({"image_head_tail": 1.0}, 2, random).all()
    assert draw_mask(None, 5, random).all()
    assert not draw_mask({"image_head": 1.0}, 5, random)[0]


def test_names_of_both_versions() -> None:
    assert [mask_name(name) for name in ("mask_no", "mask_image_head", "intepolate", "random")] == [
        "identity",
        "image_head",
        "interpolate",
        "random",
    ]
    random = np.random.default_rng(0)
    assert frame_mask("mask_image_tail", 4, random).tolist() == [True, True, True, False]
    assert draw_mask({"mask_no": 1.0}, 5, random).all()
    for name in ("mask_image_middle", "quarter", "other"):
        with pytest.raises(ValueError, match="unknown mask"):
            frame_mask(name, 5, random)


def test_ratios_of_masks() -> None:
    assert mask_ratios({"mask_no": 0.75, "mask_quarter_head": 0.25}, complete=True) == {
        "identity": 0.75,
        "quarter_head": 0.25,
    }
    assert mask_ratios({"intepolate": 0.25}) == {"interpolate": 0.25}
    for ratios, complete, message in (
        ({"mask_no": 0.5}, True, "add up to 0.5, not 1"),
        ({"identity": 0.5, "random": 0.2}, False, "add up to 0.7, not 1"),
        ({"random": 0.6, "image_head": 0.6}, False, "more than 1"),
        ({"random": -0.1}, False, "not between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=message):
            mask_ratios(ratios, complete)


def test_identity_takes_its_place_in_the_order() -> None:
    ratios = {"image_head": 0.25, "identity": 0.5, "image_tail": 0.25}
    assert [choose_mask(ratios, draw) for draw in (0.1, 0.3, 0.7, 0.8)] == [
        "image_head",
        "identity",
        "identity",
        "image_tail",
    ]


def test_random_masks() -> None:
    assert random_mask(np.array([0.2, 0.6, 0.5]), 0.5).tolist() == [False, True, False]
    assert random_mask(np.array([0.2, 0.4, 0.5]), 0.5).tolist() == [False, False, True]


@pytest.mark.parametrize("case", DATA["frame_index"], ids=str)
def test_windows_of_the_original(case: dict[str, Any]) -> None:
    assert window(case["total"], case["num_frames"], case["interval"], case["start"]).tolist() == case["index"]


def test_windows_cover_the_clip_and_stay_inside() -> None:
    starts = {int(frame_numbers(50, 8, 2, draw)[0]) for draw in np.linspace(0, 0.999999, 500)}
    assert starts == set(range(50 - 16))
    assert frame_numbers(4, 4, 3, 0.99).tolist() == [0, 1, 2, 3]

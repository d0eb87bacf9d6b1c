"""Frame masks and windows against what the original can draw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.data.frames import frame_numbers, window
from models.data.masks import choose_mask, draw_mask, frame_mask

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


@pytest.mark.parametrize("case", DATA["frame_index"], ids=str)
def test_windows_of_the_original(case: dict[str, Any]) -> None:
    assert window(case["total"], case["num_frames"], case["interval"], case["start"]).tolist() == case["index"]


def test_windows_cover_the_clip_and_stay_inside() -> None:
    starts = {int(frame_numbers(50, 8, 2, draw)[0]) for draw in np.linspace(0, 0.999999, 500)}
    assert starts == set(range(50 - 16))
    assert frame_numbers(4, 4, 3, 0.99).tolist() == [0, 1, 2, 3]

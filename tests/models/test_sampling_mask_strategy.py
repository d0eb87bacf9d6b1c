"""Conditioning frames, beyond what was recorded (see test_parity)."""

from __future__ import annotations

import numpy as np
import pytest

from models.sampling.mask_strategy import (
    Group,
    append_generated,
    apply_mask_strategy,
    continue_strategy,
    find_nearest_point,
    parse_mask_strategy,
)


def clip(frames: int, value: float = 1.0) -> np.ndarray:
    """[1, frames, 1, 1]: ``value`` and the frame's number behind the point."""
    return (value + np.arange(frames) / 100).astype(np.float32).reshape(1, frames, 1, 1)


def latents(frames: int = 10) -> np.ndarray:
    return np.zeros((1, 1, frames, 1, 1), np.float32)


def test_groups() -> None:
    assert parse_mask_strategy("1,2,-3,4,5,0.5;0") == [Group(1, 2, -3, 4, 5, 0.5), Group(0, 0, 0, 0, 1, 0.0)]
    assert parse_mask_strategy("") == parse_mask_strategy(None) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [("0,1,2,3,4,5,6", "7 fields, at most 6"), ("a", "not five integers"), ("0;", "not five integers")],
)
def test_malformed_strategies_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_mask_strategy(text)


def test_frames_are_copied_and_marked() -> None:
    before = latents()
    z, mask = apply_mask_strategy(before, [[clip(3, 1.0), clip(4, 2.0)]], ["0,0,1,0,2;0,1,-1,-1,1,0.4;1,0"], loop=0)
    np.testing.assert_allclose(z[0, 0, :, 0, 0], [1.01, 1.02, 0, 0, 0, 0, 0, 0, 0, 2.03])
    assert mask is not None
    np.testing.assert_allclose(mask, [[0, 0, 1, 1, 1, 1, 1, 1, 1, 0.4]])
    assert not before.any()
    z, mask = apply_mask_strategy(before, [[clip(3)]], ["1,0"], loop=0)
    assert not z.any()
    assert mask is not None
    assert mask.all()


def test_a_group_is_cut_to_what_there_is() -> None:
    z, mask = apply_mask_strategy(latents(), [[clip(3)]], ["0,0,1,9,100"], loop=0)
    assert np.count_nonzero(z) == 1
    assert mask is not None
    assert mask[0].tolist() == [1] * 9 + [0]


def test_v1_1_repeats_a_single_frame_and_refuses_short_references() -> None:
    z, mask = apply_mask_strategy(latents(), [[clip(1)]], ["0,0,0,2,3"], loop=0, version="v1.1")
    assert z[0, 0, :, 0, 0].tolist() == [0, 0, 1, 1, 1, 0, 0, 0, 0, 0]
    assert mask is not None
    assert mask[0].tolist() == [1, 1, 0, 0, 0, 1, 1, 1, 1, 1]
    with pytest.raises(ValueError, match="do not exist"):
        apply_mask_strategy(latents(), [[clip(2)]], ["0,0,0,2,3"], loop=0, version="v1.1")


def test_starts_snap_to_whole_chunks() -> None:
    z, _ = apply_mask_strategy(latents(), [[clip(10)]], ["0,0,-6,-2,2"], loop=0, align=5)
    np.testing.assert_allclose(z[0, 0, 5:7, 0, 0], [1.05, 1.06])
    assert np.count_nonzero(z) == 2
    assert [find_nearest_point(value, 5, 15) for value in (2, 3, 7, 8, 13)] == [0, 5, 5, 10, 10]


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("0,1", "asks for reference 1, but there are 1"),
        ("0,0,9", "reference start 9 is outside the 3"),
        ("0,0,0,-11", "target start -11 is outside the 10"),
    ],
)
def test_what_does_not_exist_is_named(strategy: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_mask_strategy(latents(), [[clip(3)]], [strategy], loop=0)


def test_an_empty_batch_has_no_mask() -> None:
    assert apply_mask_strategy(np.zeros((0, 1, 5, 1, 1), np.float32), [], [], loop=0)[1] is None


def test_loops_go_on_from_what_was_made() -> None:
    references: list[list[np.ndarray]] = [[clip(3)], []]
    strategies = append_generated(references, ["0", None], [clip(5, 3.0), clip(5, 4.0)], 1, 5, 0.1)
    assert strategies == ["0;1,1,-5,0,5,0.1", "1,0,-5,0,5,0.1"]
    assert [len(held) for held in references] == [2, 1]
    z, mask = apply_mask_strategy(np.zeros((2, 1, 10, 1, 1), np.float32), references, strategies, loop=1)
    np.testing.assert_allclose(z[:, 0, 4, 0, 0], [3.04, 4.04])
    assert mask is not None
    np.testing.assert_allclose(mask[:, :6], [[0.1] * 5 + [1]] * 2)
    assert continue_strategy("", 1, 2, 4) == "2,0,-4,0,4"

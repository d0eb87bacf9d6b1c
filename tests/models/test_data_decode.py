"""Frames asked for by number are the frames a whole decode gives; what cannot be decoded says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.data.decode import DecodeError, Header, read_frames, read_header
from tests.models.clips import QUICKSTART, all_frames, damage, make_clip


def check(path: Path, picks: list[list[int]]) -> None:
    frames = all_frames(path)
    assert read_header(path).frames == len(frames)
    for wanted in picks:
        got = read_frames(path, np.array(wanted))
        for place, number in enumerate(wanted):
            assert np.array_equal(got[place], frames[number]), f"frame {number} of {path.name}"


def test_real_clips() -> None:
    check(QUICKSTART / "bikes.mp4", [[0], [29, 30, 31], [76, 80, 137], [249]])
    check(QUICKSTART / "carphone_pristine.mp4", [[0, 1], [5, 60, 119]])
    assert read_header(QUICKSTART / "bikes.mp4") == Header(250, 272, 640, 25.0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain.mkv", {}),
        ("ten_bit.mp4", {"pix_fmt": "yuv420p10le"}),
        ("variable_rate.mp4", {"times": [n * 2 if n < 12 else 10 + n * 3 for n in range(24)]}),
        ("open_gop.mp4", {"options": {"g": "8", "x264-params": "open-gop=1:bframes=3"}}),
        ("stream.ts", {}),
        ("portrait.mp4", {"size": (64, 32)}),
    ],
)
def test_odd_material(tmp_path: Path, name: str, options: dict) -> None:
    path = make_clip(tmp_path / name, 24, **options)
    check(path, [[0], [7, 8, 9], [14, 15, 16, 17], [3, 20], [23]])


def test_image_is_a_clip_of_one_frame(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "still.png"
    Image.fromarray(np.full((20, 30, 3), 77, np.uint8)).save(path)
    assert read_header(path).frames == 1
    assert (read_frames(path, np.array([0])) == 77).all()


@pytest.mark.parametrize("keep", [0, 100, 0.5])
def test_truncated_file_is_found_out_by_its_header(tmp_path: Path, keep: float) -> None:
    path = make_clip(tmp_path / "clip.mp4")
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(DecodeError, match=r"\w"):
        read_header(path)


def test_not_a_video(tmp_path: Path) -> None:
    path = tmp_path / "note.mp4"
    path.write_text("this is no video")
    with pytest.raises(DecodeError, match="Invalid data"):
        read_header(path)


def test_damage_in_the_middle_is_an_error_not_a_grey_frame(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", 24)
    damage(path)
    assert read_header(path).frames == 24
    with pytest.raises(DecodeError):
        read_frames(path, np.array([20, 21, 22]))


def test_frame_past_the_end(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", 10)
    with pytest.raises(DecodeError, match="frame 10 does not exist, the clip has 10"):
        read_frames(path, np.array([9, 10]))

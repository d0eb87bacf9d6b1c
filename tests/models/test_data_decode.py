"""Frames asked for by number are the frames a whole decode gives; what cannot be decoded says so."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from models.data.decode import DecodeError, Header, read_frames, read_header
from tests.models.clips import QUICKSTART, all_frames, damage, make_clip, rotate


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


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotated_clips_are_shown_upright(tmp_path: Path, turns: int) -> None:
    path = make_clip(tmp_path / "clip.mp4", 6, size=(32, 64))
    stored = all_frames(path)
    rotate(path, turns)
    header = read_header(path)
    assert (header.height, header.width) == ((64, 32) if turns % 2 else (32, 64))
    frames = read_frames(path, np.array([0, 5]))
    for got, number in zip(frames, (0, 5), strict=True):
        assert np.array_equal(got, np.rot90(stored[number], turns))


def test_four_frames(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", 4)
    check(path, [[0], [0, 1, 2, 3], [3]])


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_clip_without_frames(tmp_path: Path, name: str) -> None:
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.start_encoding()
    with pytest.raises(DecodeError, match=r"holds no|Invalid data"):
        read_header(tmp_path / name)


def test_sound_without_pictures(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DecodeError, match="holds no video stream"):
        read_header(tmp_path / "sound.mp4")


def test_ten_bits_keep_their_colours(tmp_path: Path) -> None:
    eight, ten = (make_clip(tmp_path / f"{depth}.mp4", 4, pix_fmt=depth) for depth in ("yuv420p", "yuv420p10le"))
    difference = read_frames(eight, np.arange(4)).astype(int) - read_frames(ten, np.arange(4))
    # Another encoder; eight bits taken for ten would be off by far more.
    assert np.abs(difference).mean() < 15


def test_variable_rate_counts_frames_not_seconds(tmp_path: Path) -> None:
    times = [n * n for n in range(10)]
    path = make_clip(tmp_path / "clip.mp4", 10, times=times)
    assert read_header(path).frames == 10
    assert 2 < read_header(path).fps < 6
    check(path, [[0, 9], [4, 5]])


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

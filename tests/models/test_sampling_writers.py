"""Results as files: what is read back, odd sizes, lengths of GIFs, and that nothing half written stays."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from models.exits import PayloadError
from models.sampling import writers
from models.sampling.latents import Sampled, join_clips, read_latents, write_latents


def clip(frames: int = 5, height: int = 16, width: int = 24) -> np.ndarray:
    """Smooth pictures, each of another grey: codecs keep them nearly as they are."""
    ramp = np.linspace(40, 120, width)[None, None, :, None] + 20 * np.arange(frames)[:, None, None, None]
    return np.broadcast_to(ramp, (frames, height, width, 3)).astype(np.uint8)


def decoded(path: Path) -> tuple[np.ndarray, str, float]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return np.stack(frames), f"{stream.codec_context.name} {stream.pix_fmt}", float(stream.average_rate)


def test_bytes_are_rounded_and_cut_off() -> None:
    x = np.array([-2.0, -1.0, 0.0, 0.999, 1.0, 9.0], np.float32).reshape(1, 1, 1, 6).repeat(3, 0)
    assert writers.to_bytes(x)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255, 255]
    # Every grey value of 8 bits survives the way there and back.
    greys = np.arange(256, dtype=np.uint8).reshape(1, 1, 256, 1).repeat(3, 3)
    assert np.array_equal(writers.to_bytes((greys / 127.5 - 1).astype(np.float32).transpose(3, 0, 1, 2)), greys)


@pytest.mark.parametrize(("height", "width", "pixels"), [(16, 24, "yuv420p"), (15, 23, "yuv444p")])
def test_mp4(tmp_path: Path, height: int, width: int, pixels: str) -> None:
    frames = clip(5, height, width)
    path = writers.write_result(tmp_path / "a.b", frames, "mp4", 7.5)
    assert path == tmp_path / "a.b.mp4" == writers.result_path(tmp_path / "a.b", "mp4", 5)
    found, kind, rate = decoded(path)
    assert kind == f"h264 {pixels}" and rate == pytest.approx(7.5) and found.shape == frames.shape
    assert np.abs(found.astype(int) - frames).max() < 12
    assert [file.name for file in tmp_path.iterdir()] == ["a.b.mp4"]


def test_gif_keeps_its_length(tmp_path: Path) -> None:
    path = writers.write_result(tmp_path / "a", clip(12), "gif", 24)
    with Image.open(path) as image:
        assert image.n_frames == 12
        durations = []
        for number in range(12):
            image.seek(number)
            durations.append(image.info["duration"])
            assert np.abs(np.asarray(image.convert("RGB")).astype(int) - clip(12)[number]).max() < 12
    assert sum(durations) == 500 and set(durations) <= {40, 50}


def test_frames_and_images(tmp_path: Path) -> None:
    frames = clip(3, 15, 23)
    for _ in range(2):  # the second time over the first
        folder = writers.write_result(tmp_path / "a", frames, "png", 24)
    assert sorted(file.name for file in folder.iterdir()) == [f"frame_000{n}.png" for n in range(3)]
    assert np.array_equal(np.stack([np.asarray(Image.open(f)) for f in sorted(folder.iterdir())]), frames)
    for kind in ("mp4", "gif", "png"):
        path = writers.write_result(tmp_path / kind, frames[:1], kind, 24)
        assert path.suffix == ".png" and np.array_equal(np.asarray(Image.open(path)), frames[0])


def test_a_failed_write_leaves_the_old_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for kind in ("mp4", "png"):
        path = writers.write_result(tmp_path / "a", clip(), kind, 24)
        monkeypatch.setattr(writers.os, "replace", fails)
        with pytest.raises(OSError, match="No space"):
            writers.write_result(tmp_path / "a", clip(), kind, 24)
        monkeypatch.undo()
        assert path.exists() or kind == "png"
        assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_latents_on_disk(tmp_path: Path) -> None:
    sampled = Sampled("sub/a", np.arange(48, dtype=np.float32).reshape(2, 1, 3, 2, 4), 3, 1, {"prompt": "ä"})
    path = write_latents(tmp_path, sampled)
    found = read_latents(tmp_path, path)
    assert np.array_equal(found.latents, sampled.latents)
    assert (found.stem, found.frames, found.repeated, found.facts) == ("sub/a", 3, 1, {"prompt": "ä"})
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(PayloadError, match="latents cannot be read"):
        read_latents(tmp_path, path)


def test_clips_of_loops_in_a_row() -> None:
    clips = [np.full((3, 4, 1, 1), loop) for loop in range(3)]
    assert join_clips(clips, 1)[0, :, 0, 0].tolist() == [0] * 4 + [1] * 3 + [2] * 3
    assert join_clips(clips[:1], 1).shape == (3, 4, 1, 1)

"""References: images and clips of any size, and files that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.data.transforms import resize_crop_to_fill_image, resize_crop_to_fill_video
from models.exits import BAD_DATA, PayloadError
from models.sampling import references
from models.sampling.references import References, read_reference
from tests.models.clips import all_frames, make_clip


def test_a_clip_of_another_size_is_cut_as_upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "_RUN", 4)  # frames are read in runs
    path = make_clip(tmp_path / "a.mp4", 10, size=(48, 64))
    found = read_reference(path, (16, 24))
    expected = resize_crop_to_fill_video(np.stack(all_frames(path)), (16, 24)).transpose(1, 0, 2, 3)
    assert found.shape == (3, 10, 16, 24) and np.array_equal(found, expected)


def test_an_image_is_one_frame(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (30, 20, 4), np.uint8)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = read_reference(tmp_path / "a.png", (16, 24))
    assert np.array_equal(found[:, 0], resize_crop_to_fill_image(pixels[..., :3].copy(), (16, 24)))


def test_references_are_encoded_once(tmp_path: Path) -> None:
    make_clip(tmp_path / "a.mp4", 3)
    calls = []

    def encode(x: np.ndarray) -> np.ndarray:
        calls.append(x.shape)
        return x[:, :1]

    held = References(tmp_path, (16, 24), encode)
    assert held.get("a.mp4").shape == (1, 3, 16, 24) and held.get("a.mp4") is held.get("a.mp4")
    assert calls == [(1, 3, 3, 16, 24)]


def test_files_that_are_no_references(tmp_path: Path) -> None:
    make_clip(tmp_path / "a.mp4", 3)
    (tmp_path / "none.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:200])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.mp4").touch()
    found = {}
    for name in ("gone.png", "none.mp4", "text.png", "empty.mp4", "https://x.org/a.mp4", "."):
        with pytest.raises(PayloadError) as caught:
            read_reference(tmp_path / name if "://" not in name else Path(name), (16, 24))
        assert caught.value.exit_code == BAD_DATA and caught.value.where and caught.value.next_step
        found[name] = caught.value.what
    assert found["gone.png"] == "a reference does not exist"
    assert found["none.mp4"] == found["text.png"] == found["empty.mp4"] == "a reference cannot be read"
    assert found["https://x.org/a.mp4"] == "a reference is an address, not a file"
    assert found["."] == "a reference is a folder, not an image or a clip"


def test_a_clip_without_frames(tmp_path: Path) -> None:
    import av

    path = tmp_path / "zero.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        container.start_encoding()
    assert path.stat().st_size
    with pytest.raises(PayloadError) as caught:
        read_reference(path, (16, 24))
    assert caught.value.what in ("a reference cannot be read", "a reference holds no frames")

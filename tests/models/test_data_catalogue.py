"""Which clips are used, which are left out and why; what is said when the data cannot be used at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from models.config import DataConfig
from models.data import catalogue
from models.data.catalogue import Catalogue, build_catalogue
from models.data.decode import Header
from models.exits import BAD_DATA, PayloadError
from models.parallel.world import World
from models.settings import fixed_shape, unfit
from tests.models.clips import make_clip, make_dataset
from tests.models.worlds import run_ranks


def build(folder: Path, world: World | None = None, run_dir: Path | None = None, **options: object) -> Catalogue:
    data = DataConfig.model_validate(
        {
            "annotations": str(folder / "train.csv"),
            "videos": str(folder),
            "text_embeddings": str(folder / "text"),
            "image_size": [16, 16],
            "num_frames": 8,
            **options,
        }
    )
    return build_catalogue(data, run_dir or folder, world or World(), 8, unfit(data, fixed_shape(data)))


def test_unusable_clips_are_named_with_their_reason(tmp_path: Path) -> None:
    make_dataset(tmp_path, 5)
    (tmp_path / "clip1.mp4").unlink()
    (tmp_path / "clip2.mp4").write_bytes((tmp_path / "clip2.mp4").read_bytes()[:400])
    make_clip(tmp_path / "clip3.mp4", 5)
    found = build(tmp_path)
    assert [clip.name for clip in found.clips] == ["clip0.mp4", "clip4.mp4"]
    assert found.clips[0].header == Header(24, 48, 64, 25.0)
    reasons = {clip.name: (clip.line, clip.reason) for clip in found.skipped}
    assert reasons["clip1.mp4"] == (3, "No such file or directory")
    assert reasons["clip2.mp4"][1].startswith("Invalid data")
    assert reasons["clip3.mp4"][1] == "has 5 frames, 8 are needed"


def test_clip_that_fits_no_bucket(tmp_path: Path) -> None:
    make_dataset(tmp_path, 2)
    with pytest.raises(PayloadError, match="none of the 2 clips can be used") as caught:
        build(tmp_path, image_size=None, bucket_config={"144p": {8: [1.0, 1]}})
    assert "fits no bucket (24 frames of 48x64)" in caught.value.why


def test_headers_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(tmp_path, 3)
    read: list[str] = []
    original = catalogue.read_header
    monkeypatch.setattr(catalogue, "read_header", lambda path: (read.append(path.name), original(path))[1])
    first = build(tmp_path)
    assert sorted(read) == ["clip0.mp4", "clip1.mp4", "clip2.mp4"]
    make_clip(tmp_path / "clip1.mp4", 30)
    second = build(tmp_path)
    assert read[3:] == ["clip1.mp4"]
    assert second.clips[1].header.frames == 30
    assert first.digest != second.digest
    (tmp_path / "clips.json").write_text('{"torn')
    assert build(tmp_path).digest == second.digest
    assert len(json.loads((tmp_path / "clips.json").read_text())) == 3


def test_missing_embeddings_fail_at_once_with_their_names(tmp_path: Path) -> None:
    make_dataset(tmp_path, 8)
    for number in range(1, 8):
        (tmp_path / "text" / f"clip{number}.npz").unlink()
    with pytest.raises(PayloadError) as caught:
        build(tmp_path)
    assert caught.value.exit_code == BAD_DATA
    assert caught.value.what == "text embeddings are missing for 7 of 8 clips"
    assert caught.value.why.startswith("clip1.mp4 (line 3), clip2.mp4 (line 4)")
    assert caught.value.why.endswith("…")


def test_embedding_beside_the_full_name(tmp_path: Path) -> None:
    make_dataset(tmp_path, 1)
    (tmp_path / "text" / "clip0.npz").rename(tmp_path / "text" / "clip0.mp4.npz")
    assert build(tmp_path).clips[0].embedding.name == "clip0.mp4.npz"


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"text_emb": np.zeros((4, 9), np.float32), "mask": np.ones(4, np.uint8)}, "shape [4, 9]"),
        ({"text_emb": np.zeros((4, 8), np.float32), "mask": np.ones(5, np.uint8)}, "mask has shape [5]"),
        ({"emb": np.zeros((4, 8), np.float32)}, "no array 'text_emb'"),
        (None, "not a readable npz"),
    ],
)
def test_malformed_embedding(tmp_path: Path, arrays: dict | None, problem: str) -> None:
    make_dataset(tmp_path, 1)
    path = tmp_path / "text" / "clip0.npz"
    if arrays is None:
        path.write_bytes(b"PK\x03\x04 no zip")
    else:
        np.savez(path, **arrays)
    with pytest.raises(PayloadError) as caught:
        build(tmp_path)
    assert problem in caught.value.why
    assert caught.value.where == str(path)


def test_missing_settings_and_folders(tmp_path: Path) -> None:
    make_dataset(tmp_path, 1)
    with pytest.raises(PayloadError, match=r"data.annotations is not set"):
        build(tmp_path, annotations="")
    with pytest.raises(PayloadError, match="folder of text embeddings does not exist"):
        build(tmp_path, text_embeddings=str(tmp_path / "none"))


def test_a_clip_that_one_node_lacks_is_used_by_none(tmp_path: Path) -> None:
    for rank in range(2):
        make_dataset(tmp_path / str(rank), 4)
    (tmp_path / "1" / "clip2.mp4").unlink()
    make_clip(tmp_path / "1" / "clip3.mp4", 30)
    found = run_ranks(2, lambda world: build(tmp_path / str(world.rank), world))
    for catalogue_ in found:
        assert [clip.name for clip in catalogue_.clips] == ["clip0.mp4", "clip1.mp4"]
    assert found[0].digest == found[1].digest
    assert [clip.reason for clip in found[0].skipped] == ["cannot be used on another rank"] * 2
    assert [clip.reason for clip in found[1].skipped] == [
        "No such file or directory",
        "is not the same file on all nodes",
    ]


def test_nodes_with_other_annotations_are_refused(tmp_path: Path) -> None:
    for rank in range(2):
        make_dataset(tmp_path / str(rank), 3 + rank)
    with pytest.raises(PayloadError, match="annotations differ between nodes") as caught:
        run_ranks(2, lambda world: build(tmp_path / str(world.rank), world))
    assert caught.value.where == "rank 1 against rank 0"

"""``ostrain data``: annotations made, filtered, split and counted; tasks started from options."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ostrain.cli.data import data
from ostrain.data.annotate import words
from ostrain.data.encode import load_values
from ostrain.errors import OstrainError, SpecError
from tests.models.clips import make_clip, write_embedding


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(data, [str(argument) for argument in arguments], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def touch(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ApplyEyeMakeup", "apply eye makeup"),
        ("TaiChi", "tai chi"),
        ("YoYo", "yo yo"),
        ("HTMLPage_two-parts", "html page two parts"),
        ("v_Biking_g01_c02", "v biking g01 c02"),
    ],
)
def test_names_become_words(name: str, text: str) -> None:
    assert words(name) == text


def test_annotate_takes_text_files_then_folders(tmp_path: Path) -> None:
    touch(tmp_path / "videos/ApplyLipstick/v_1.avi")
    touch(tmp_path / "videos/ApplyLipstick/v_2.MP4")
    touch(tmp_path / "videos/ApplyLipstick/v_2.txt", b'red, "glossy"\nlips\n')
    touch(tmp_path / "videos/notes.md")
    touch(tmp_path / "videos/top.png")
    out = tmp_path / "a.csv"
    told = json.loads(run("annotate", tmp_path / "videos", "-o", out, "--json").stdout)
    assert told == {"clips": 2, "captions": {"folder": 1, "text": 1}, "without_caption": ["top.png"]}
    assert rows(out) == [
        ["video", "caption"],
        ["ApplyLipstick/v_1.avi", "apply lipstick"],
        ["ApplyLipstick/v_2.MP4", 'red, "glossy" lips'],
    ]
    with pytest.raises(OstrainError, match=r"a\.csv exists"):
        run("annotate", tmp_path / "videos", "-o", out)
    run("annotate", tmp_path / "videos", "-o", out, "--force", "--captions", "none")
    assert rows(out)[0] == ["video"] and len(rows(out)) == 4
    run("annotate", tmp_path / "videos", "-o", out, "--force", "--captions", "name")
    assert rows(out)[3] == ["top.png", "top"]


def test_annotate_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(OstrainError, match="there is no folder"):
        run("annotate", tmp_path / "none", "-o", tmp_path / "a.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OstrainError, match="no clips below"):
        run("annotate", tmp_path / "empty", "-o", tmp_path / "a.csv")
    touch(tmp_path / "clips/a.mp4")
    with pytest.raises(OstrainError, match="none of the 1 clips has a caption") as caught:
        run("annotate", tmp_path / "clips", "-o", tmp_path / "a.csv")
    assert "--captions name" in caught.value.next_step
    touch(tmp_path / "clips/a.txt", b"\xff\xff")
    with pytest.raises(OstrainError, match="not UTF-8"):
        run("annotate", tmp_path / "clips", "-o", tmp_path / "a.csv")


def test_filter_keeps_rows_as_they_are(tmp_path: Path) -> None:
    names = ["a.mp4", "sub/b.mp4", "c.mp4", "d.mp4", "e.mp4"]
    for name in names[:4]:
        touch(tmp_path / "videos" / name, b"" if name == "d.mp4" else b"x")
    for name in ("a.npz", "sub/b.mp4.npz", "d.npz", "e.npz"):
        touch(tmp_path / "text" / name)
    touch(tmp_path / "latents/latent_8x8/a.npz")
    touch(tmp_path / "latents/latent_16x8/sub/b.npz")
    text = "id,video,caption\n" + "".join(f'{n},{name},"x, {n}"\n' for n, name in enumerate(names))
    (tmp_path / "all.csv").write_text(text)
    everything = ["--videos", tmp_path / "videos", "--text-embeddings", tmp_path / "text"]
    out = tmp_path / "kept.csv"
    found = run("filter", tmp_path / "all.csv", "-o", out, *everything, "--latents", tmp_path / "latents", "--json")
    told = json.loads(found.stdout)
    assert told["kept"] == 2
    assert [(entry["line"], entry["reason"]) for entry in told["dropped"]] == [
        (4, "text embedding is missing"),
        (5, "video is empty"),
        (6, "video is missing"),
    ]
    assert rows(out) == [["id", "video", "caption"], ["0", "a.mp4", "x, 0"], ["1", "sub/b.mp4", "x, 1"]]
    deep = json.loads(run("filter", tmp_path / "all.csv", *everything[:2], "--deep", "--json").stdout
                      if (make_clip(tmp_path / "videos/a.mp4", 4)) else "")  # fmt: skip
    assert deep["kept"] == 1 and "cannot be decoded" in deep["dropped"][0]["reason"]


def test_filter_says_when_nothing_stays(tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text("video\na.mp4\n")
    (tmp_path / "videos").mkdir()
    with pytest.raises(OstrainError, match="none of the 1 rows stays") as caught:
        run("filter", tmp_path / "all.csv", "--videos", tmp_path / "videos", "-o", tmp_path / "out.csv")
    assert caught.value.where.endswith("all.csv:2") and not (tmp_path / "out.csv").exists()
    with pytest.raises(OstrainError, match="there is no folder"):
        run("filter", tmp_path / "all.csv", "--videos", tmp_path / "none")
    with pytest.raises(OstrainError, match="no column 'video'"):
        (tmp_path / "all.csv").write_text("path\na.mp4\n")
        run("filter", tmp_path / "all.csv", "--videos", tmp_path / "videos")


def test_split_is_repeatable_and_whole(tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text("video,caption\n" + "".join(f"{n}.mp4,c\n" for n in range(10)))
    run("split", tmp_path / "all.csv", "--ratio", 0.7)
    train, test = rows(tmp_path / "all_train.csv"), rows(tmp_path / "all_test.csv")
    assert (len(train), len(test)) == (8, 4)
    assert sorted(train[1:] + test[1:]) == [[f"{n}.mp4", "c"] for n in range(10)]
    run("split", tmp_path / "all.csv", "--ratio", 0.7, "--force")
    assert rows(tmp_path / "all_train.csv") == train


def buckets(folder: Path, *options: object) -> dict[str, Any]:
    return dict(json.loads(run("buckets", folder / "train.csv", "--json", *options).stdout))


def test_buckets_of_a_recipe(tmp_path: Path, cache: Path) -> None:
    names = [f"clip{n}.mp4" for n in range(4)]
    for name, frames, size in zip(
        names, (60, 60, 20, 1), ((144, 256), (256, 144), (144, 256), (144, 256)), strict=True
    ):
        make_clip(tmp_path / "videos" / name, frames, size=size)
    (tmp_path / "train.csv").write_text("video\n" + "\n".join([*names, "none.mp4"]) + "\n")
    options = ["--recipe", "opensora_v1_2/stage3", "--videos", tmp_path / "videos"]
    config = ["--set", "data.bucket_config={144p: {51: [1.0, 2], 1: [1.0, 1]}}"]
    told = buckets(tmp_path, *options, *config, "-p", tmp_path / "b.png")
    assert told["buckets"] == [
        {"bucket": "144p/51", "samples": 2, "batch_size": 2, "steps": 0},
        {"bucket": "144p/1", "samples": 1, "batch_size": 1, "steps": 1},
    ]
    assert told["shapes"] == {"51x144x256": 1, "51x256x144": 1, "1x144x256": 1}
    assert told["unusable"] == {"fits no bucket (20 frames of 144x256)": 1, "No such file or directory": 1}
    assert (tmp_path / "b.png").read_bytes()[:4] == b"\x89PNG"
    assert len(list(cache.rglob("clips/*.json"))) == 1
    twice = buckets(tmp_path, *options, *config, "--epochs", 2)
    assert (twice["samples"], twice["steps"]) == (6, 4)
    assert buckets(tmp_path, *options, *config, "--epochs", 2, "--replicas", 2)["steps"] == 1
    text = run("buckets", tmp_path / "train.csv", *options, *config).output
    assert "144p/51" in text and "cannot be used: 1 clips: No such file" in text


def test_buckets_of_a_job_with_one_size_and_of_latents(tmp_path: Path, cache: Path) -> None:
    make_clip(tmp_path / "videos" / "a.mp4", 60)
    (tmp_path / "train.csv").write_text("video,caption\na.mp4,x\n")
    told = buckets(tmp_path, "--job", "quickstart", "--videos", tmp_path / "videos")
    assert [entry["samples"] for entry in told["buckets"]] == [1]
    mean = np.zeros((9, 4, 4, 6), np.float32)
    (tmp_path / "latents").mkdir()
    np.savez(tmp_path / "latents/a.npz", latent_mean=mean, fps=24.0)
    options = ["--set", "autoencoder.type=VideoAutoencoderKL", "--set", "data={num_frames: 8}"]
    told = buckets(tmp_path, "--recipe", "opensora_v1_2/stage3", "--latents", tmp_path / "latents", *options,
                   "--set", "data.bucket_config=null")  # fmt: skip
    assert told["shapes"] == {"8x32x48": 1}


def test_buckets_say_what_is_wrong(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "train.csv").write_text("video\na.mp4\n")
    with pytest.raises(OstrainError, match="none of the 1 clips can be used"):
        run("buckets", tmp_path / "train.csv", "--recipe", "opensora_v1_2/stage3", "--videos", tmp_path)
    with pytest.raises(SpecError, match="problem"):
        run("buckets", tmp_path / "train.csv", "--recipe", "opensora_v1_2/stage9")


def test_values_of_a_task_come_from_file_and_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.yaml").write_text("annotations: a.csv\nout: /o\ntext: {type: hashed, max_length: 7}\n")
    config, values = load_values("embed_text", Path("t.yaml"), ["text.channels=9", "batch_size=3"])
    assert (config.text.max_length, config.text.channels, config.batch_size) == (7, 9, 3)  # type: ignore[attr-defined]
    assert values["annotations"] == str(tmp_path / "a.csv")
    assert values["out"] == "/o"
    with pytest.raises(SpecError) as caught:
        load_values("embed_text", Path("t.yaml"), ["batch_size=0", "text.tpye=t5"])
    assert len(caught.value.problems) == 2


def test_embed_text_from_options_to_files(tmp_path: Path) -> None:
    """The one real process here: options, task, summary; a fault is told as it is."""
    (tmp_path / "train.csv").write_text("video,caption\nsub/a.mp4,one two\n")
    result = run("embed-text", tmp_path / "train.csv", "-o", tmp_path / "out", "--hashed", "--max-length", 5,
                 "--channels", 6, "--json")  # fmt: skip
    told = json.loads(result.stdout)
    assert (told["done"], told["kept"], told["failed"]) == (1, 0, 0)
    write_embedding(tmp_path / "expected.npz", "one two", 5, 6)
    with np.load(tmp_path / "out/sub/a.npz") as own, np.load(tmp_path / "expected.npz") as expected:
        assert all(np.array_equal(own[key], expected[key]) for key in ("text_emb", "mask"))


def test_a_fault_of_the_task_is_told(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("video\na.mp4\n")
    with pytest.raises(OstrainError, match="none of the 1 clips could be encoded") as caught:
        run("cache-latents", tmp_path / "train.csv", "-o", tmp_path / "out", "--autoencoder", "identity",
            "--image-size", 8, 8, "--videos", tmp_path)  # fmt: skip
    assert caught.value.next_step

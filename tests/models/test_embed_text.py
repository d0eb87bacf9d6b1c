"""Captions to npz files: keys, places, ranks, what is kept, and what is said of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from models.config.embed_text import EmbedTextConfig
from models.embed_text import captions_of, embed, read
from models.exits import BAD_CONFIG, BAD_DATA, PayloadError
from models.parallel.world import World
from models.text.embeddings import embedding_problem, read_embedding
from models.text.hashed import embed as hashed
from tests.models.runs import events
from tests.models.tasks import make_task
from tests.models.worlds import run_ranks


def config(**over: object) -> EmbedTextConfig:
    values = {"text": {"type": "hashed", "max_length": 6, "channels": 4}, "out": "out", "batch_size": 2, **over}
    return EmbedTextConfig.model_validate(values)


def annotate(folder: Path, rows: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(f'{video},"{caption}"\n' for video, caption in rows.items())
    (folder / "train.csv").write_text("video,caption\n" + text)


CLIPS = {f"part{n % 2}/clip{n}.mp4": f"clip number {n}" for n in range(5)}


def test_files_of_clips(tmp_path: Path) -> None:
    annotate(tmp_path, CLIPS)
    task, said = make_task(tmp_path)
    embed(config(annotations="train.csv"), task)
    for video, caption in CLIPS.items():
        path = (tmp_path / "out" / video).with_suffix(".npz")
        with np.load(path, allow_pickle=False) as arrays:
            assert {name: (arrays[name].shape, arrays[name].dtype) for name in arrays} == {
                "text_emb": ((6, 4), np.float32),
                "mask": ((6,), np.uint8),
            }
        text, mask = hashed(caption, 6, 4)
        found, found_mask = read_embedding(path, 6, 4)
        assert np.array_equal(found, text) and np.array_equal(found_mask, mask)
        assert embedding_problem(path, 4) == ""
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["done"], summary["kept"], summary["failed"], summary["channels"]) == (5, 0, 0, 4)
    assert events(tmp_path, "text_embedded")[0]["done"] == 5
    assert "5 made" in said.getvalue()
    assert json.loads((tmp_path / "heartbeat/rank-0").read_text())["phase"] == "done"


def test_what_is_whole_is_kept(tmp_path: Path) -> None:
    annotate(tmp_path, CLIPS)
    embed(config(annotations="train.csv"), make_task(tmp_path)[0])
    files = sorted((tmp_path / "out").rglob("*.npz"))
    files[0].write_bytes(files[0].read_bytes()[:50])
    np.savez(files[1], text_emb=np.zeros((7, 4), np.float32), mask=np.ones(7, np.uint8))
    files[2].unlink()
    times = {path: path.stat().st_mtime_ns for path in files[3:]}
    embed(config(annotations="train.csv"), make_task(tmp_path)[0])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["done"], summary["kept"]) == (3, 2)
    assert {path: path.stat().st_mtime_ns for path in files[3:]} == times
    assert all(embedding_problem(path, 4) == "" for path in files)
    embed(config(annotations="train.csv", overwrite=True), make_task(tmp_path)[0])
    assert json.loads((tmp_path / "summary.json").read_text())["done"] == 5


def test_ranks_share_the_captions(tmp_path: Path) -> None:
    annotate(tmp_path, CLIPS)

    def work(world: World) -> str:
        task, said = make_task(tmp_path, world)
        embed(config(annotations="train.csv"), task)
        return said.getvalue()

    first, second = run_ranks(2, work)
    assert "5 captions, 3 of them for rank 0 of 2" in first and "2 of them for rank 1 of 2" in second
    assert len(list((tmp_path / "out").rglob("*.npz"))) == 5
    assert json.loads((tmp_path / "summary.json").read_text())["done"] == 5


def test_prompts_of_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat and/or a dog\n\n" + "word " * 30 + "\n" + "x" * 400 + "\n")
    embed(config(prompts="p.txt"), make_task(tmp_path)[0])
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names[0] == "000-a-cat-andor-a-dog.npz"
    assert names[1] == "001-" + "-".join(["word"] * 10) + ".npz"
    assert names[2] == "002-" + "x" * 200 + ".npz"
    with np.load(tmp_path / "out" / names[0], allow_pickle=False) as arrays:
        assert {name: arrays[name].shape for name in arrays} == {
            "text_emb": (1, 6, 4), "mask": (1, 6), "tokens": (1, 6)
        }  # fmt: skip
        assert arrays["tokens"].dtype.kind == "i"
    assert embedding_problem(tmp_path / "out" / names[0], 4) == ""


def test_cut_captions_are_named(tmp_path: Path) -> None:
    annotate(tmp_path, {"a.mp4": "one two three four five six seven"})
    task, said = make_task(tmp_path)
    embed(config(annotations="train.csv"), task)
    assert "WARNING prompt cut: 8 tokens, the text encoder takes 6: 'one two" in said.getvalue()


@pytest.mark.parametrize(
    ("rows", "what", "line"),
    [
        ({"a.mp4": "one", "a.avi": "two"}, "two captions for one embedding", 3),
        ({"../a.mp4": "one"}, "embedding has no place", 2),
    ],
)
def test_clips_that_cannot_have_a_file(tmp_path: Path, rows: dict[str, str], what: str, line: int) -> None:
    annotate(tmp_path, rows)
    with pytest.raises(PayloadError, match=what) as caught:
        captions_of(config(annotations="train.csv"), tmp_path)
    assert caught.value.exit_code == BAD_DATA
    assert caught.value.where == f"{tmp_path / 'train.csv'}:{line}"


def test_a_clip_that_stands_twice_with_one_caption_is_embedded_once(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("video,caption\na.mp4,one\na.mp4,one\n")
    assert len(captions_of(config(annotations="train.csv"), tmp_path)) == 1


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"out": "o"}, "neither of annotations and prompts"),
        ({"annotations": "a", "prompts": "b", "out": "o"}, "both of annotations and prompts"),
        ({"annotations": "a"}, "out is not set"),
        ({"annotations": "a", "out": "o"}, "text.pretrained is not set"),
        ({"text": {"type": "t6"}}, "1 problems"),
    ],
)
def test_bad_configurations(tmp_path: Path, values: dict, what: str) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(PayloadError, match=what) as caught:
        read(tmp_path / "c.yaml")
    assert caught.value.exit_code == BAD_CONFIG


@pytest.mark.parametrize(
    ("content", "what"), [(b"\n \n", "is empty"), (b"\xff\xfe", "cannot be read"), (None, "cannot be read")]
)
def test_bad_prompt_files(tmp_path: Path, content: bytes | None, what: str) -> None:
    if content is not None:
        (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(PayloadError, match=what):
        captions_of(config(prompts="p.txt"), tmp_path)

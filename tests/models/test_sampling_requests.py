"""Prompts become requests: files, loops, options, seeds, names, and every way to get them wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.config.sample import SampleConfig
from models.exits import BAD_CONFIG, BAD_DATA, PayloadError
from models.sampling.noise import latent_noise, step_noise
from models.sampling.requests import Request, build_requests
from tests.models.samplers import settings


def built(root: Path = Path("."), **over: Any) -> list[Request]:
    return build_requests(SampleConfig(**settings(**over)), root)


def refused(kind: int, root: Path = Path("."), **over: Any) -> PayloadError:
    with pytest.raises(PayloadError) as caught:
        built(root, **over)
    assert caught.value.exit_code == kind and caught.value.where and caught.value.next_step
    return caught.value


def test_a_prompt_with_loops_scores_and_options() -> None:
    text = '|0| A calm sea.|2|A storm {"reference_path": "sea.png; rocks.mp4", "mask_strategy": "0;0,1,0,-1,1,0.5"}'
    (request,) = built(prompts=[text], loop=3, aes=6.5, camera_motion="zoom in")
    calm, storm = (f"a {what} aesthetic score: 6.5. camera motion: zoom in." for what in ("calm sea.", "storm"))
    assert request.texts == (calm, calm, storm)
    assert request.references == ("sea.png", "rocks.mp4") and request.strategy == "0;0,1,0,-1,1,0.5"
    assert request.prompt.startswith("|0| A calm sea.") and "{" not in request.prompt
    assert request.stem == "sample_0000"


def test_a_reference_without_a_strategy_is_the_first_frame() -> None:
    assert built(reference_path="a.png")[0].strategy == "0"
    assert built(reference_path="a.png", mask_strategy="0,0,0,-1")[0].strategy == "0,0,0,-1"


def test_v1_1_appends_camera_motion_as_its_captions_did() -> None:
    model = {"type": "STDiT2", "hidden_size": 24, "num_heads": 2}
    (request,) = built(model=model, prompts=["|0|A dog|1|A cat"], loop=2, camera_motion="pan left")
    assert request.texts == ("a dog the camera is panning left.", "a cat the camera is panning left.")
    error = refused(BAD_CONFIG, model=model, camera_motion="pan_left")
    assert "unknown camera motion 'pan_left'" in error.why


def test_files_of_prompts(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\n\n  two  \nthree\n")
    found = built(tmp_path, prompts=None, prompt_path="p.txt", start_index=1, end_index=9)
    assert [(request.prompt, request.index, request.stem) for request in found] == [
        ("two", 1, "sample_0001"), ("three", 2, "sample_0002")
    ]  # fmt: skip
    rows = 'caption,seed,negative_prompt,name,reference_path\n"a, b",7,Blurry,mine,\nc,,,,x.png\n'
    (tmp_path / "p.csv").write_text(rows)
    first, second = built(tmp_path, prompts=None, prompt_path="p.csv", negative_prompt="ugly")
    assert (first.prompt, first.seed, first.negative, first.stem, first.strategy) == ("a, b", 7, "blurry", "mine", "")
    assert (second.seed, second.negative, second.references) == (42, "ugly", ("x.png",))


def test_embeddings_name_their_results(tmp_path: Path) -> None:
    (tmp_path / "e" / "sub").mkdir(parents=True)
    for name in ("b.npz", "a.npz", "sub/c.npz"):
        (tmp_path / "e" / name).touch()
    found = built(tmp_path, prompts=None, text=None, text_embeddings="e")
    assert [(r.stem, r.embedding) for r in found] == [("a", "a.npz"), ("b", "b.npz"), ("sub_c", "sub/c.npz")]
    error = refused(BAD_CONFIG + 1, tmp_path, prompts=["x"], text_embeddings="e")
    assert error.what == "there are 3 text embeddings for 1 prompts"


def test_names_of_results() -> None:
    found = built(prompts=["a/b"], num_samples=2, output={"prompt_as_path": True, "name": "x "})
    assert [request.stem for request in found] == ["x a_b-0", "x a_b-1"]
    long = built(prompts=["ä" * 300, "ä" * 300 + "b"], output={"prompt_as_path": True})
    assert len({request.stem for request in long}) == 2 and all(len(r.stem.encode()) < 240 for r in long)
    assert "same name" in refused(BAD_CONFIG, prompts=["a", "a"], output={"prompt_as_path": True}).what
    assert "empty prompt" in refused(BAD_CONFIG, prompts=[" "], output={"prompt_as_path": True}).what


def test_noise_belongs_to_the_prompt_alone() -> None:
    alone = built(prompts=["b"])
    among = built(prompts=["a", "b", "b"], num_samples=2)
    shape = (3, 2, 4, 4)
    rows = latent_noise(among, 0, shape)
    assert np.array_equal(latent_noise(alone, 0, shape)[0], rows[2])
    assert len({row.tobytes() for row in rows}) == 6  # samples of a prompt, and a repeated prompt, differ
    assert not np.array_equal(latent_noise(alone, 0, shape), latent_noise(alone, 1, shape))
    assert not np.array_equal(step_noise(alone, 0, 0, shape), step_noise(alone, 0, 1, shape))
    assert not np.array_equal(latent_noise(built(prompts=["b"], seed=1), 0, shape), latent_noise(alone, 0, shape))


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("1,2,3,4,5,6,7", "has 7 fields, at most 6"),
        ("head", "is not five integers and an edit ratio"),
        ("0,1", "asks for reference 1 in loop 0, but there are 1"),
        ("2", "conditions loop 2; loops made: 0 to 1"),
        ("0,0,0,0,0", "conditions 0 frames"),
        ("0,0,0,0,1,1.5", "edit ratio 1.5"),
    ],
)
def test_unknown_mask_strategies(strategy: str, message: str) -> None:
    error = refused(BAD_CONFIG, reference_path="a.png", mask_strategy=strategy, loop=2, condition_frame_length=1)
    assert message in error.why and error.where == "sample.prompts.0"


def test_a_later_loop_may_use_what_an_earlier_one_made() -> None:
    assert built(mask_strategy="1,0,-2,0,2", loop=2)[0].strategy == "1,0,-2,0,2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('x {"reference": "a.png"}', "unknown option 'reference'"),
        ('x {"mask_strategy": "0"', "are not JSON"),
        ("|0|a|b", "loop without a text"),
    ],
)
def test_prompts_that_cannot_be_used(text: str, message: str) -> None:
    assert message in refused(BAD_CONFIG, prompts=["fine", text], loop=2).why


def test_lists_as_long_as_the_prompts() -> None:
    found = built(prompts=["a", "b"], reference_path=["a.png", None], mask_strategy=["0", ""])
    assert [request.references for request in found] == [("a.png",), ()]
    assert "2 entries for 1 prompts" in refused(BAD_CONFIG, mask_strategy=["0", "0"]).what


def test_bad_files_of_prompts(tmp_path: Path) -> None:
    def error(name: str, text: bytes) -> PayloadError:
        (tmp_path / name).write_bytes(text)
        return refused(BAD_DATA, tmp_path, prompts=None, prompt_path=name)

    assert refused(BAD_DATA, tmp_path, prompts=None, prompt_path="none.txt").what == "file of prompts does not exist"
    assert error("e.txt", b"\n \n").what == "file of prompts is empty"
    assert error("u.txt", b"\xff\xfe").what == "file of prompts is not UTF-8"
    assert error("c.csv", b"video\nx\n").why == "it is video"
    wrong = error("s.csv", b"prompt,seed\nx,1\ny,-2\n")
    assert wrong.what == "seed '-2' is not a whole number below 2^32" and wrong.where.endswith("s.csv:3")
    assert error("n.csv", b"prompt,seed\nx,1,2\n").what == "row has another number of columns than the header"
    (tmp_path / "one.txt").write_text("x\n")
    assert "no prompt is left" in refused(BAD_CONFIG, tmp_path, prompts=None, prompt_path="one.txt", start_index=1).what

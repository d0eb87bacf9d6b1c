"""Prompts, training captions, size information and names of results, beyond what was recorded (see test_parity)."""

from __future__ import annotations

from pathlib import PurePath

import numpy as np
import pytest

from models.sampling import captions, metadata, prompts


def test_options_end_a_prompt() -> None:
    text, options = prompts.extract_options('a cat {"reference_path": "a.png", "mask_strategy": "0"}')
    assert text == "a cat "
    assert options == {"reference_path": "a.png", "mask_strategy": "0"}
    assert prompts.extract_options("[a] cat") == ("[a] cat", {})
    assert prompts.extract_options('x {"anything": 1}', "v1.1") == ("x ", {"anything": 1})
    with pytest.raises(ValueError, match="not JSON"):
        prompts.extract_options("[a] cat", "v1.1")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ('a {"mask": "0"}', "unknown option 'mask'"),
        ('a {"reference_path": }', "not JSON"),
        ('a {"reference_path": {"b": 1}}', "more than one"),
        ("a {", "not JSON"),
    ],
)
def test_wrong_options_are_named(prompt: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prompts.extract_options(prompt)


def test_texts_by_loop() -> None:
    prompt = "|0| a sea |2| a storm"
    assert [prompts.prompt_of_loop(prompt, loop).strip() for loop in range(4)] == ["a sea"] * 2 + ["a storm"] * 2
    assert prompts.split_prompt(prompt) == prompts.Segments(("a sea", "a storm"), (0, 2))
    assert prompts.merge_prompt(prompts.split_prompt(prompt)) == "|0|a sea|2|a storm"
    assert prompts.prompts_of_loops(prompt, 3) == ["a sea", "a sea", "a storm"]
    assert prompts.prompts_of_loops("A sea", 2) == ["a sea", "a sea"]
    with pytest.raises(ValueError, match="2 loops, but 1 are made"):
        prompts.prompts_of_loops(prompt, 1)


@pytest.mark.parametrize(("prompt", "message"), [("|0|a|1", "without a text"), ("|0|a|b|c", "other than a number")])
def test_wrong_loops_are_named(prompt: str, message: str) -> None:
    for read in (prompts.split_prompt, lambda text: prompts.prompt_of_loop(text, 0)):
        with pytest.raises(ValueError, match=message):
            read(prompt)


def test_scores_are_added_once() -> None:
    scored = prompts.append_scores("A sea.", aes=6.45, flow=2.0, camera_motion="pan left")
    assert scored == "A sea. aesthetic score: 6.5. motion score: 2.0. camera motion: pan left."
    assert prompts.append_scores(scored, aes=1.0, flow=1.0, camera_motion="static") == scored
    ready = prompts.prepare_prompt("|0|A Sea|1|<b>Storm</b>", aes=5.0)
    assert ready == "|0|a sea aesthetic score: 5.0.|1|storm aesthetic score: 5.0."


def test_training_captions() -> None:
    assert captions.with_scores("A", aes=5.25) == "A [aesthetic score: 5.2]"
    assert captions.with_scores("A") == "A"
    assert captions.with_camera_motion("A.", "zoom_in") == "A. Camera motion: zoom in."
    assert captions.with_camera_motion("A.", "unknown", "v1.1") == "A."
    assert captions.camera_motion_probability("unknown", "v1.1") == 0
    with pytest.raises(ValueError, match="unknown camera motion 'roll'"):
        captions.with_camera_motion("A.", "roll")


def test_size_information() -> None:
    info = metadata.multi_resolution_info("STDiT2", 3, (240, 426), 1, 24)
    assert {key: value.tolist() for key, value in info.items() if key != "ar"} == {
        "height": [240.0] * 3,
        "width": [426.0] * 3,
        "num_frames": [1.0] * 3,
        "fps": [120.0] * 3,
    }
    assert {value.dtype for value in info.values()} == {np.dtype(np.float32)}
    assert metadata.multi_resolution_info("OpenSora", 1, (240, 426), 51, 24)["fps"] == 24
    assert metadata.multi_resolution_info(None, 1, (240, 426), 51, 24) == {}
    with pytest.raises(ValueError, match="unknown kind"):
        metadata.multi_resolution_info("DiT", 1, (240, 426), 51, 24)


def test_pixel_frames() -> None:
    assert [metadata.pixel_frames(count) for count in (0, 5, 30)] == [0, 17, 102]
    with pytest.raises(ValueError, match="whole chunks"):
        metadata.pixel_frames(7)


def test_names_of_results() -> None:
    assert metadata.sample_path("out", 3) == PurePath("out/sample_0003")
    assert metadata.sample_path("out", 3, name="v", samples=2, sample=1) == PurePath("out/v_0003-1")
    assert metadata.sample_path("out", prompt="a cat", prompt_as_path=True) == PurePath("out/a cat")
    assert metadata.sample_path("out", prompt="/etc/../x", prompt_as_path=True) == PurePath("out/_etc_.._x")
    for wanted in ({}, {"prompt_as_path": True}):
        with pytest.raises(ValueError, match="needs"):
            metadata.sample_path("out", **wanted)

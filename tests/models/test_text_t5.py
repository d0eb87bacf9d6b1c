"""T5 as a text encoder: folders, cleaning, cutting, masks; its numbers are compared in test_parity."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models.config.text import TextConfig
from models.exits import BAD_CHECKPOINT, BAD_CONFIG, PayloadError
from models.text import TextEncoder, build
from models.text.cleaning import text_preprocessing
from tests.models.text_encoders import make_t5

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_t5(tmp_path_factory.mktemp("t5"))


def encoder(folder: Path, length: int = 12, warnings: list[str] | None = None, **options: object) -> TextEncoder:
    config = TextConfig.model_validate({"pretrained": folder.name, "max_length": length, **options})
    return build(config, folder.parent, (warnings if warnings is not None else []).append)


def test_shapes_types_and_masks(folder: Path) -> None:
    built = encoder(folder)
    assert (built.max_length, built.channels) == (12, 16)
    y, mask = built.encode(["a cat", "waves rolling in"])
    assert (y.shape, y.dtype) == ((2, 1, 12, 16), np.float32)
    assert (mask.shape, mask.dtype) == ((2, 12), np.uint8)
    assert np.isfinite(y).all()


def test_padding_changes_no_token_and_companions_neither(folder: Path) -> None:
    y, mask = encoder(folder, 12).encode(["a cat", "a much longer text of many words"])
    tokens = int(mask[0].sum())
    alone, _ = encoder(folder, 40).encode(["a cat"])
    np.testing.assert_allclose(alone[0, 0, :tokens], y[0, 0, :tokens], atol=2e-6)


def test_captions_are_cleaned_twice(folder: Path) -> None:
    raw = "A <b>CAT</b> &amp;amp; a  dog!! https://example.com/x"
    built = encoder(folder, 32)
    y, _ = built.encode([raw])
    cleaned, _ = built.encode([text_preprocessing(raw)], cleaned=True)
    assert np.array_equal(y, cleaned)
    lower, _ = encoder(folder, 32, clean=False).encode([raw])
    assert not np.array_equal(y, lower)


def test_what_is_too_long_is_cut_and_named_once(folder: Path) -> None:
    warnings: list[str] = []
    built = encoder(folder, 6, warnings)
    text = "a prompt of far more words than this encoder takes " * 3
    y, mask = built.encode([text, "a cat"])
    built.encode([text])
    assert len(warnings) == 1
    assert "the text encoder takes 6" in warnings[0] and "a prompt of far more words" in warnings[0]
    assert mask[0].all() and y.shape == (2, 1, 6, 16)


def test_shards_are_the_same_weights(folder: Path, tmp_path: Path) -> None:
    make_t5(tmp_path / "parts", shards=3)
    one, _ = encoder(folder).encode(["a cat"])
    many, _ = encoder(tmp_path / "parts").encode(["a cat"])
    assert np.array_equal(one, many)


def test_half_precision_files_and_the_other_name_of_the_table(folder: Path, tmp_path: Path) -> None:
    other = make_t5(tmp_path / "half")
    state = {name: value.astype(np.float16) for name, value in load_file(other / "model.safetensors").items()}
    state["encoder.embed_tokens.weight"] = state.pop("shared.weight")
    save_file(state, other / "model.safetensors")
    whole, _ = encoder(folder).encode(["a cat"])
    half, _ = encoder(other).encode(["a cat"])
    np.testing.assert_allclose(whole, half, atol=0.02)


def _fails(folder: Path, code: int, what: str) -> PayloadError:
    with pytest.raises(PayloadError, match=what) as caught:
        encoder(folder)
    assert caught.value.exit_code == code
    assert caught.value.next_step
    return caught.value


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    folder = make_t5(tmp_path / "t5")
    file = folder / "model.safetensors"
    state = load_file(file)
    name = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    save_file({key: value for key, value in state.items() if key != name}, file)
    assert f"{name} is missing" in _fails(folder, BAD_CHECKPOINT, "not complete").why
    save_file({**state, name: state[name][:, :4]}, file)
    assert "config.json says [16, 24]" in _fails(folder, BAD_CHECKPOINT, "do not fit").why
    file.write_bytes(file.read_bytes()[:-100])
    assert _fails(folder, BAD_CHECKPOINT, "cannot be read").where == str(file)
    file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    error = _fails(folder, BAD_CHECKPOINT, "weights of the text encoder are not there")
    assert "pytorch_model.bin" in error.why and "convert" in error.next_step


def test_an_index_that_names_a_missing_file(tmp_path: Path) -> None:
    folder = make_t5(tmp_path / "t5", shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    _fails(folder, BAD_CHECKPOINT, "are missing")
    (folder / "model.safetensors.index.json").write_text("{}")
    _fails(folder, BAD_CHECKPOINT, "index of the weights")


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"feed_forward_proj": "relu"}, "this kind of T5"),
        ({"model_type": "bert"}, "'bert' is not a T5"),
        ({"d_ff": None}, "says no d_ff"),
    ],
)
def test_another_model(tmp_path: Path, config: dict, what: str) -> None:
    _fails(make_t5(tmp_path / "t5", **config), BAD_CONFIG, what)


def test_missing_and_damaged_folders(tmp_path: Path) -> None:
    _fails(tmp_path / "none", BAD_CONFIG, "does not exist")
    folder = make_t5(tmp_path / "t5")
    (folder / "config.json").write_text(json.dumps([1]))
    _fails(folder, BAD_CONFIG, "is not an object")
    (folder / "config.json").write_text("{")
    _fails(folder, BAD_CONFIG, "cannot be read")
    (folder / "config.json").unlink()
    _fails(folder, BAD_CONFIG, "no config.json")

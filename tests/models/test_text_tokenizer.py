"""T5's tokenizer: the ids of the sentencepiece library, padding, truncation; damaged files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from models.exits import BAD_CHECKPOINT, PayloadError
from models.text.spiece import CONTROL, UNKNOWN, BadModel, read_spiece
from models.text.tokenizer import T5Tokenizer, from_spiece, load_tokenizer
from tests.models.text_encoders import SPIECE

EXPECTED = json.loads((SPIECE / "expected.json").read_text())


def test_ids_are_those_of_sentencepiece() -> None:
    tokens = load_tokenizer(SPIECE, 128)([entry["text"] for entry in EXPECTED])
    for row, entry in enumerate(EXPECTED):
        wanted = [*entry["ids"], 1]
        assert tokens.ids[row].tolist() == wanted + [0] * (128 - len(wanted)), entry["text"]
        assert tokens.mask[row].tolist() == [1] * len(wanted) + [0] * (128 - len(wanted))
        assert tokens.lengths[row] == len(wanted)


def test_what_is_cut_still_ends() -> None:
    long = max(EXPECTED, key=lambda entry: len(entry["ids"]))
    tokens = load_tokenizer(SPIECE, 8)([long["text"], "a cat"])
    assert tokens.ids[0].tolist() == [*long["ids"][:7], 1]
    assert tokens.mask[0].all()
    assert tokens.lengths[0] == len(long["ids"]) + 1 > 8
    assert tokens.ids[1][tokens.mask[1] == 1][-1] == 1


def test_both_kinds_of_file_give_the_same_ids(tmp_path: Path) -> None:
    """A tokenizer.json, with the end token in it and settings of its own for padding and truncation."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = from_spiece(read_spiece(SPIECE / "spiece.model"))
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=5)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    texts = [entry["text"] for entry in EXPECTED]
    for length in (8, 64):
        own, other = load_tokenizer(tmp_path, length)(texts), load_tokenizer(SPIECE, length)(texts)
        assert (own.ids == other.ids).all()
        assert own.lengths == other.lengths


def test_extra_ids_follow_the_pieces_backwards() -> None:
    tokenizer = from_spiece(read_spiece(SPIECE / "spiece.model"))
    assert tokenizer.token_to_id("<extra_id_99>") == 400
    assert tokenizer.token_to_id("<extra_id_0>") == 499


def test_pieces_and_kinds() -> None:
    model = read_spiece(SPIECE / "spiece.model")
    assert [piece.text for piece in model.pieces[:3]] == ["<pad>", "</s>", "<unk>"]
    assert [piece.kind for piece in model.pieces[:3]] == [CONTROL, CONTROL, UNKNOWN]
    assert model.unk_id == 2
    assert model.character_map and model.space_in_front and model.single_spaces


@pytest.mark.parametrize("keep", [0, 1, 2, 13, 100, 3000, 3001, -1])
def test_a_file_cut_short_is_found_out(tmp_path: Path, keep: int) -> None:
    data = (SPIECE / "spiece.model").read_bytes()
    (tmp_path / "spiece.model").write_bytes(data[:keep])
    with pytest.raises(BadModel, match=r"cut short|no pieces|unknown"):
        read_spiece(tmp_path / "spiece.model")
    with pytest.raises(PayloadError, match="tokenizer cannot be read"):
        load_tokenizer(tmp_path, 8)


@pytest.mark.parametrize("data", [b"\xff" * 40, b"this is text, no protocol buffer", bytes(64)])
def test_another_file_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "spiece.model").write_bytes(data)
    with pytest.raises(BadModel):
        read_spiece(tmp_path / "spiece.model")


def test_missing_and_damaged_tokenizers(tmp_path: Path) -> None:
    with pytest.raises(PayloadError, match="has no tokenizer") as caught:
        load_tokenizer(tmp_path, 8)
    assert caught.value.exit_code == BAD_CHECKPOINT
    shutil.copyfile(SPIECE / "spiece.model", tmp_path / "spiece.model")
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(PayloadError, match="tokenizer cannot be read") as caught:
        load_tokenizer(tmp_path, 8)
    assert caught.value.where.endswith("tokenizer.json")


def test_a_vocabulary_without_an_end_token() -> None:
    from tokenizers import Tokenizer, models

    with pytest.raises(ValueError, match="has no <pad>"):
        T5Tokenizer(Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0, False)), 4)

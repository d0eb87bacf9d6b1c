"""T5's tokenizer: tokenizer.json of a Hugging Face folder, or its spiece.model.

Upstream: opensora/models/text_encoder/t5.py: padding to the maximal length, truncation, ``</s>`` at the end, attention
mask. Whatever is cut, ``</s>`` stays the last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.exits import BAD_CHECKPOINT, BAD_CONFIG, PayloadError
from models.text import spiece

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, END = "<pad>", "</s>"
EXTRA_IDS = 100
_SPACE = "▁"


@dataclass(frozen=True)
class Tokens:
    """ids int32 and mask uint8, both [B, L] (mask 1 = a token); how many tokens each text has before it is cut."""

    ids: np.ndarray
    mask: np.ndarray
    lengths: tuple[int, ...]


class T5Tokenizer:
    """Texts to token ids of a fixed length."""

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        pad, end = tokenizer.token_to_id(PAD), tokenizer.token_to_id(END)
        if pad is None or end is None:
            raise ValueError(f"has no {PAD if pad is None else END}")
        self._tokenizer, self._pad, self._end, self._max_length = tokenizer, pad, end, max_length

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Ids and masks of texts as they are: nothing is cleaned here."""
        ids = np.full((len(texts), self._max_length), self._pad, np.int32)
        mask = np.zeros(ids.shape, np.uint8)
        lengths = []
        for row, encoding in enumerate(self._tokenizer.encode_batch(list(texts))):
            found = encoding.ids if encoding.ids and encoding.ids[-1] == self._end else [*encoding.ids, self._end]
            kept = found if len(found) <= self._max_length else [*found[: self._max_length - 1], self._end]
            ids[row, : len(kept)] = kept
            mask[row, : len(kept)] = 1
            lengths.append(len(found))
        return Tokens(ids, mask, tuple(lengths))

    def beginning(self, ids: np.ndarray) -> str:
        """The text of ids, without special tokens."""
        return str(self._tokenizer.decode([int(token) for token in ids]))


def load_tokenizer(folder: Path, max_length: int) -> T5Tokenizer:
    """The tokenizer of a Hugging Face folder. PayloadError: no file for it, a damaged one, or no `tokenizers`."""
    library = _library()
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            tokenizer = library.Tokenizer.from_file(str(path))
            tokenizer.no_padding()
            tokenizer.no_truncation()
            return T5Tokenizer(tokenizer, max_length)
        except Exception as error:  # the library raises plain Exception for a damaged file
            raise _bad(path, str(error)) from None
    path = folder / "spiece.model"
    if not path.is_file():
        raise PayloadError(
            BAD_CHECKPOINT,
            "text encoder has no tokenizer",
            where=str(folder),
            why="neither tokenizer.json nor spiece.model is there",
            next_step="put one of them beside config.json; both come with the weights",
        )
    try:
        return T5Tokenizer(from_spiece(spiece.read_spiece(path)), max_length)
    except (spiece.BadModel, OSError, ValueError) as error:
        raise _bad(path, str(error)) from None


def from_spiece(model: spiece.SentencePieceModel) -> Tokenizer:
    """The same tokenizer as the `tokenizers` library has it: texts normalised, cut at spaces, then by likelihood.

    T5's vocabulary goes on after the pieces: ``<extra_id_99>`` … ``<extra_id_0>``.
    """
    library = _library()
    vocabulary = [(piece.text, piece.score) for piece in model.pieces]
    known = {piece.text for piece in model.pieces}
    extra = [f"<extra_id_{number}>" for number in reversed(range(EXTRA_IDS))]
    vocabulary += [(text, 0.0) for text in extra if text not in known]
    tokenizer: Tokenizer = library.Tokenizer(library.models.Unigram(vocabulary, model.unk_id, False))
    steps = [library.normalizers.Precompiled(model.character_map)] if model.character_map else []
    if model.single_spaces:
        steps += [library.normalizers.Strip(), library.normalizers.Replace(library.Regex(" {2,}"), " ")]
    tokenizer.normalizer = library.normalizers.Sequence(steps)
    scheme = "always" if model.space_in_front else "never"
    tokenizer.pre_tokenizer = library.pre_tokenizers.Metaspace(_SPACE, scheme, True)
    tokenizer.decoder = library.decoders.Metaspace(_SPACE, scheme, True)
    control = [piece.text for piece in model.pieces if piece.kind in (spiece.CONTROL, spiece.UNKNOWN)]
    tokenizer.add_special_tokens([*control, *extra])
    return tokenizer


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise PayloadError(
            BAD_CONFIG,
            "captions cannot be cut into tokens: tokenizers is not installed",
            why="T5's vocabulary is read with it",
            next_step="install it: pip install 'ostrain[models]'",
        ) from error
    return tokenizers


def _bad(path: Path, why: str) -> PayloadError:
    return PayloadError(
        BAD_CHECKPOINT, "tokenizer cannot be read", where=str(path), why=why, next_step="get the file again"
    )

"""Stand-in embeddings, and captions embedded while training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from models.config.text import TextConfig
from models.exits import PayloadError
from models.text import TextEncoder, build
from models.text.hashed import embed
from models.text.online import OnlineText


class Counting(TextEncoder):
    """Says what it was asked; a caption's numbers are its length."""

    max_length, channels = 4, 2

    def __init__(self) -> None:
        super().__init__(lambda text: None)
        self.asked: list[tuple[str, ...]] = []

    def encode_with_tokens(
        self, texts: Sequence[str], cleaned: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.asked.append(tuple(texts))
        found = np.stack([np.full((4, 2), len(text), np.float32) for text in texts])
        return found, np.ones((len(texts), 4), np.uint8), np.ones((len(texts), 4), np.int32)


def test_hashed_encoder_gives_what_the_files_hold() -> None:
    warnings: list[str] = []
    config = TextConfig(type="hashed", max_length=5, channels=8)
    y, mask = build(config, warn=warnings.append).encode(["a cat", "one two three four five six"])
    for row, caption in enumerate(("a cat", "one two three four five six")):
        text, expected = embed(caption, 5, 8)
        assert np.array_equal(y[row, 0], text) and np.array_equal(mask[row], expected)
    assert len(warnings) == 1 and "7 tokens" in warnings[0]


def test_t5_needs_a_folder() -> None:
    with pytest.raises(PayloadError, match="the text encoder has no weights"):
        build(TextConfig())


def test_captions_are_embedded_one_by_one_and_remembered() -> None:
    encoder = Counting()
    online = OnlineText(encoder, 1 << 20)
    y, mask = online.get(["aa", "b", "aa"])
    assert encoder.asked == [("aa",), ("b",)]
    assert y[:, 0, 0].tolist() == [2, 1, 2]
    assert (y.shape, mask.shape, mask.dtype) == ((3, 4, 2), (3, 4), np.int32)
    online.get(["b"])
    assert len(encoder.asked) == 2


def test_the_memory_is_bounded() -> None:
    encoder = Counting()
    online = OnlineText(encoder, 2 * (4 * 2 * 4 + 4 * 4))  # two captions
    for caption in ("a", "bb", "a", "ccc", "a", "bb"):
        online.get([caption])
    assert encoder.asked == [("a",), ("bb",), ("ccc",), ("bb",)]
    nothing = OnlineText(encoder, 0)
    assert nothing.get(["a", "a"])[0][:, 0, 0].tolist() == [1, 1]

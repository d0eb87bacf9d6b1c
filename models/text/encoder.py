"""Text encoders: captions to embeddings of a fixed number of tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from models.config.text import TextConfig
from models.events import Log
from models.exits import BAD_CONFIG, PayloadError
from models.text import hashed

Warn = Callable[[str], None]
_SHOWN = 60


class TextEncoder(ABC):
    """Captions to embeddings. ``max_length``: tokens L, ``channels``: numbers C of a token's embedding."""

    max_length: int
    channels: int

    def __init__(self, warn: Warn | None = None) -> None:
        self._warn = warn or Log().warning
        self._warned: set[str] = set()

    def encode(self, texts: Sequence[str], cleaned: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings float32 [B, 1, L, C] and mask uint8 [B, L], 1 = a token.

        cleaned: the texts are cleaned already. What is longer than L tokens is cut, its end token kept, and named in a
        warning (once). A text's embedding may differ in its last bits with the number of texts beside it.
        """
        found, mask, _ = self.encode_with_tokens(texts, cleaned)
        return found[:, None], mask

    @abstractmethod
    def encode_with_tokens(
        self, texts: Sequence[str], cleaned: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Embeddings float32 [B, L, C], mask uint8 [B, L] and token ids int32 [B, L]."""

    def _warn_of_cut(self, text: str, length: int) -> None:
        if text in self._warned:
            return
        self._warned.add(text)
        shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
        self._warn(f"prompt cut: {length} tokens, the text encoder takes {self.max_length}: {shown!r}")


class HashedEncoder(TextEncoder):
    """Stand-in vectors, one a word (:mod:`models.text.hashed`). Token ids count the words, from 1; captions are not
    cleaned: words are all that counts."""

    def __init__(self, config: TextConfig, warn: Warn | None = None) -> None:
        super().__init__(warn)
        self.max_length, self.channels = config.max_length, config.channels

    def encode_with_tokens(
        self, texts: Sequence[str], cleaned: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows = []
        for text in texts:
            length = hashed.length(text)
            if length > self.max_length:
                self._warn_of_cut(text, length)
            rows.append(hashed.embed(text, self.max_length, self.channels))
        found = np.stack([row[0] for row in rows]) if rows else np.zeros((0, self.max_length, self.channels), "f4")
        mask = np.stack([row[1] for row in rows]) if rows else np.zeros((0, self.max_length), np.uint8)
        return found, mask, np.cumsum(mask, axis=1).astype(np.int32) * mask


def build(config: TextConfig, base: Path | None = None, warn: Warn | None = None) -> TextEncoder:
    """The text encoder that ``config`` describes; a relative ``pretrained`` starts at ``base`` (default: here).

    warn: takes what users should know, such as prompts that were cut (default: a line of the log).
    PayloadError: files of the encoder are missing, damaged or of another kind.
    """
    if config.type == "hashed":
        return HashedEncoder(config, warn)
    if config.pretrained is None:
        raise PayloadError(
            BAD_CONFIG,
            "the text encoder has no weights",
            where="text.pretrained",
            why="t5 is read from a Hugging Face folder",
            next_step="name that folder, or set text.type to hashed for stand-ins",
        )
    from models.text.t5_encoder import load_t5

    return load_t5(config, (base or Path(".")) / config.pretrained, warn)

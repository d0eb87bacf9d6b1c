"""Captions embedded while training, just before the step that needs them, and remembered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from models.text.encoder import TextEncoder


class Texts(Protocol):
    """Embeds captions for samples."""

    def get(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings float32 [B, L, C] and masks int32 [B, L]."""


class OnlineText:
    """A text encoder with a memory of ``capacity`` bytes; the latest used captions stay.

    Every caption is embedded by itself: its numbers do not depend on which others the step has, on ranks, or on what is
    remembered. To be used by one thread, the one that trains: the device belongs to it.
    """

    def __init__(self, encoder: TextEncoder, capacity: int) -> None:
        self._encoder, self._capacity = encoder, capacity
        self._bytes = 0
        self._kept: OrderedDict[str, tuple[np.ndarray, np.ndarray]] = OrderedDict()

    def get(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings float32 [B, L, C] and masks int32 [B, L]. PayloadError where cleaning has no library."""
        found = [self._one(caption) for caption in captions]
        return np.stack([text for text, _ in found]), np.stack([mask for _, mask in found])

    def _one(self, caption: str) -> tuple[np.ndarray, np.ndarray]:
        if caption in self._kept:
            self._kept.move_to_end(caption)
            return self._kept[caption]
        text, mask = self._encoder.encode([caption])
        entry = (text[0, 0], mask[0].astype(np.int32))
        self._kept[caption] = entry
        self._bytes += sum(array.nbytes for array in entry)
        while self._bytes > self._capacity and self._kept:
            _, old = self._kept.popitem(last=False)
            self._bytes -= sum(array.nbytes for array in old)
        return entry

"""Text embeddings from npz files: ``text_emb`` float [L, D] and ``mask`` uint8 [L] (1 = a token, 0 = padding)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.data.npz import UNREADABLE, array_shapes, read_array
from models.exits import BAD_DATA, PayloadError


def embedding_problem(path: Path, channels: int) -> str:
    """What is wrong with an embedding file, from its arrays' headers alone; empty when nothing is."""
    try:
        shapes = array_shapes(path)
    except UNREADABLE as error:
        return f"not a readable npz ({error})"
    missing = [key for key in ("text_emb", "mask") if key not in shapes]
    if missing:
        return f"has no array {missing[0]!r}; it holds {', '.join(shapes) or 'nothing'}"
    text, mask = _squeeze(shapes["text_emb"]), _squeeze(shapes["mask"])
    if len(text) != 2 or text[1] != channels:
        return f"text_emb has shape {list(text)}, the model's caption_channels want [L, {channels}]"
    if mask != text[:1]:
        return f"mask has shape {list(mask)}, text_emb {list(text)}"
    return ""


def whole_embedding(path: Path, length: int, channels: int) -> bool:
    """Whether a file is there and holds an embedding of ``length`` tokens, by its arrays' headers."""
    try:
        shapes = array_shapes(path)
    except UNREADABLE:
        # Not there, or cut short: it will be made.
        return False
    return _squeeze(shapes.get("text_emb", ())) == (length, channels) and _squeeze(shapes.get("mask", ())) == (length,)


def read_embedding(path: Path, max_length: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """(text_emb float32 [max_length, channels], mask int32 [max_length]), cut or padded with zeros.

    PayloadError(BAD_DATA) names the file when it cannot be read, has another shape, masks every token out or holds
    values that are not finite.
    """
    problem = embedding_problem(path, channels)
    if not problem:
        try:
            text = np.asarray(read_array(path, "text_emb"), np.float32).reshape(-1, channels)[:max_length]
            mask = read_array(path, "mask").reshape(-1)[:max_length]
        except UNREADABLE as error:
            problem = f"not a readable npz ({error})"
    if not problem and not mask.any():
        problem = "its mask leaves no token"
    if not problem and not np.isfinite(text).all():
        problem = "text_emb holds values that are not finite"
    if problem:
        raise PayloadError(
            BAD_DATA, "text embedding cannot be used", where=str(path), why=problem, next_step="compute it again"
        )
    padding = max_length - len(text)
    return np.pad(text, ((0, padding), (0, 0))), np.pad((mask != 0).astype(np.int32), (0, padding))


def _squeeze(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Embeddings of a list of prompts carry a leading axis of 1."""
    return shape[1:] if len(shape) > 1 and shape[0] == 1 else shape

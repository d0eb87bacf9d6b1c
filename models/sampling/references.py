"""Images and clips that condition a result: read, cut to its size, and encoded once.

Upstream: opensora/datasets/utils.py, ``read_from_path`` with ``resize_crop``: scaled to cover the size, middle cut out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from models.data.decode import IMAGE_SUFFIXES, DecodeError, read_frames, read_header
from models.data.transforms import resize_crop_to_fill_image, resize_crop_to_fill_video
from models.exits import BAD_DATA, PayloadError

# Frames decoded at a time: only resized ones are kept.
_RUN = 64
# Encoded references kept for prompts that share them.
_KEPT = 16


def read_reference(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Every frame of an image or a clip, float32 [3, T, h, w] in [-1, 1], T of an image 1. PayloadError names it."""
    if "://" in str(path) or str(path).startswith(("http:/", "https:/")):
        raise _bad(path, "a reference is an address, not a file", "", "download it, and name the file")
    if not path.is_file():
        what = "a reference is a folder, not an image or a clip" if path.is_dir() else "a reference does not exist"
        raise _bad(path, what, "", "correct reference_path")
    image = path.suffix.lower() in IMAGE_SUFFIXES
    try:
        total = 1 if image else read_header(path).frames
        runs = [np.arange(first, min(first + _RUN, total)) for first in range(0, total, _RUN)]
        parts = [_resized(read_frames(path, run), size, image) for run in runs]
    except DecodeError as error:
        raise _bad(path, "a reference cannot be read", str(error), "replace it") from None
    if not parts:
        raise _bad(path, "a reference holds no frames", "", "replace it")
    return np.ascontiguousarray(np.concatenate(parts).transpose(1, 0, 2, 3))


def _resized(frames: np.ndarray, size: tuple[int, int], image: bool) -> np.ndarray:
    """uint8 [T, H, W, 3] -> float32 [T, 3, h, w]."""
    return resize_crop_to_fill_image(frames[0], size)[None] if image else resize_crop_to_fill_video(frames, size)


class References:
    """Encoded references by path: latents [C, t, h, w]."""

    def __init__(self, root: Path, size: tuple[int, int], encode: Callable[[np.ndarray], np.ndarray]) -> None:
        """encode: float32 [1, 3, T, H, W] -> float32 [1, C, t, h, w]."""
        self._root, self._size, self._encode = root, size, encode
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()

    def get(self, path: str) -> np.ndarray:
        if path not in self._kept:
            self._kept[path] = self._encode(read_reference(self._root / path, self._size)[None])[0]
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(path)
        return self._kept[path]


def _bad(path: Path, what: str, why: str, next_step: str) -> PayloadError:
    return PayloadError(BAD_DATA, what, where=str(path), why=why, next_step=next_step)

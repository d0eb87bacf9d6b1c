"""Frames of clips at the training size, the latest used kept in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np

from models.data.bucket import Shape
from models.data.decode import read_frames
from models.data.transforms import resize_crop_to_fill_image, resize_crop_to_fill_video

_Key = tuple[str, int, int, int, bool]


class Frames:
    """Decoded and resized frames, float32 [3, h, w] in [-1, 1]. Safe for several threads.

    Every frame is resized on its own, so its values do not depend on which others were asked for, nor on what the
    memory (at most ``capacity`` bytes) still holds.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._bytes = 0
        self._kept: OrderedDict[_Key, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: Path, wanted: np.ndarray, shape: Shape, image: bool) -> np.ndarray:
        """Frames number ``wanted`` of a clip: float32 [3, T, h, w]. DecodeError.

        image: the file is a still image (upstream resizes those with Pillow's bicubic filter).
        """
        keys = {int(number): (str(path), int(number), shape.height, shape.width, image) for number in wanted}
        with self._lock:
            found = {number: self._kept[key] for number, key in keys.items() if key in self._kept}
            for number in found:
                self._kept.move_to_end(keys[number])
        missing = np.array([number for number in keys if number not in found], np.int64)
        if missing.size:
            for number, frame in zip(missing, read_frames(path, missing), strict=True):
                found[int(number)] = _resize(frame, shape, image)
            self._keep({keys[int(number)]: found[int(number)] for number in missing})
        return np.stack([found[int(number)] for number in wanted], axis=1)

    def _keep(self, frames: dict[_Key, np.ndarray]) -> None:
        with self._lock:
            for key, frame in frames.items():
                if key not in self._kept:
                    self._kept[key] = frame
                    self._bytes += frame.nbytes
            while self._bytes > self._capacity and self._kept:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes


def _resize(frame: np.ndarray, shape: Shape, image: bool) -> np.ndarray:
    size = (shape.height, shape.width)
    resized = resize_crop_to_fill_image(frame, size) if image else resize_crop_to_fill_video(frame[None], size)[0]
    return np.ascontiguousarray(resized)


def frame_numbers(total: int, frames: int, interval: int, draw: float) -> np.ndarray:
    """Which frames a sample takes: int64 [frames] of a clip with ``total``.

    ``draw`` in [0, 1) picks the start. Upstream: opensora/datasets/utils.py, ``temporal_random_crop``: a window of
    ``frames * interval`` frames (the whole clip when it is shorter), evenly spaced, both ends included.
    """
    last_start = max(0, total - frames * interval - 1)
    return window(total, frames, interval, int(draw * (last_start + 1)))


def window(total: int, frames: int, interval: int, start: int) -> np.ndarray:
    """Frame numbers of the window that starts at ``start``, moved back where the clip would end before it."""
    start = min(start, max(0, total - frames * interval - 1))
    end = min(start + frames * interval, total)
    return np.linspace(start, end - 1, frames).astype(np.int64)

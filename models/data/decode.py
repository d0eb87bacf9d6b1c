"""Frames of a clip, exactly the ones asked for. FFmpeg through PyAV; one thread a clip, the loader runs several."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
_INDEX_CACHE = 4096


class DecodeError(Exception):
    """A clip whose frames cannot be had; the text says why."""


@dataclass(frozen=True)
class Header:
    """What a clip says about itself, as displayed (rotation applied): frames, height, width, frames per second."""

    frames: int
    height: int
    width: int
    fps: float


@dataclass(frozen=True)
class _Index:
    """Presentation times of a clip's frames in display order, and its key frames as (pts, where to seek)."""

    pts: np.ndarray
    keys: list[tuple[int, int]]


def read_header(path: Path) -> Header:
    """Facts of a clip. One frame is decoded, so that a file without decodable video is found out. DecodeError."""
    try:
        with av.open(str(path)) as container:
            stream = _video(container)
            frames = 1 if path.suffix.lower() in IMAGE_SUFFIXES else stream.frames
            fps = float(stream.average_rate or stream.guessed_rate or 0)
            first = next(container.decode(stream), None)
            if first is None:
                raise DecodeError("holds no decodable frame")
            height, width = first.height, first.width
            if _quarter_turns(first) % 2:
                height, width = width, height
        if frames <= 0:
            # The container does not say (Matroska, transport streams): count the packets.
            frames = len(_read_index(path).pts)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DecodeError(_reason(error)) from None
    if frames <= 0:
        raise DecodeError("holds no frames")
    return Header(frames, height, width, fps)


def read_frames(path: Path, wanted: np.ndarray) -> np.ndarray:
    """Frames number ``wanted`` (int, ascending, from 0 in display order): uint8 [T, H, W, 3] RGB.

    Seeks to the last key frame that is displayed no later than the first wanted frame. DecodeError when one of them
    does not exist, cannot be decoded or is damaged.
    """
    try:
        return _read(path, wanted)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DecodeError(_reason(error)) from None


def _read(path: Path, wanted: np.ndarray) -> np.ndarray:
    index = _index(path)
    if wanted[-1] >= len(index.pts):
        raise DecodeError(f"frame {int(wanted[-1])} does not exist, the clip has {len(index.pts)}")
    numbers: dict[int, int] = {int(index.pts[number]): int(number) for number in wanted}
    found: dict[int, np.ndarray] = {}
    with av.open(str(path)) as container:
        stream = _video(container)
        first, last = int(index.pts[wanted[0]]), int(index.pts[wanted[-1]])
        keys = [seek for pts, seek in index.keys if pts <= first]
        if len(index.pts) > 1 and keys:
            container.seek(keys[-1], stream=stream, backward=True)
        for frame in container.decode(stream):
            if frame.pts in numbers and numbers[frame.pts] not in found:
                if frame.is_corrupt:
                    raise DecodeError(f"frame {numbers[frame.pts]} is damaged")
                found[numbers[frame.pts]] = _rgb(frame)
            if len(found) == len(numbers) or (frame.pts is not None and frame.pts > last):
                break
    missing = [int(number) for number in wanted if int(number) not in found]
    if missing:
        raise DecodeError(f"frame {missing[0]} cannot be decoded ({len(missing)} of {len(numbers)} missing)")
    return np.stack([found[int(number)] for number in wanted])


def _rgb(frame: av.VideoFrame) -> np.ndarray:
    image = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(image, _quarter_turns(frame)))


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Counter-clockwise quarter turns that the container's display matrix asks for."""
    return round(frame.rotation / 90) % 4


def _video(container: av.container.InputContainer) -> av.VideoStream:
    if not container.streams.video:
        raise DecodeError("holds no video stream")
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    return stream


def _read_index(path: Path) -> _Index:
    times: list[int] = []
    keys: list[tuple[int, int]] = []
    with av.open(str(path)) as container:
        stream = _video(container)
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_discard:
                continue
            if packet.pts is None:
                raise DecodeError("has frames without time stamps")
            times.append(packet.pts)
            if packet.is_keyframe:
                keys.append((packet.pts, packet.pts if packet.dts is None else min(packet.pts, packet.dts)))
    return _Index(np.unique(np.asarray(times, np.int64)), sorted(keys))


_indices: OrderedDict[tuple[str, int, int], _Index] = OrderedDict()
_indices_lock = threading.Lock()


def _index(path: Path) -> _Index:
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns)
    with _indices_lock:
        if key in _indices:
            _indices.move_to_end(key)
            return _indices[key]
    index = _read_index(path)
    with _indices_lock:
        _indices[key] = index
        while len(_indices) > _INDEX_CACHE:
            _indices.popitem(last=False)
    return index


def _reason(error: Exception) -> str:
    if isinstance(error, av.EOFError):
        return "holds no frames, or ends before them"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__

"""Results as files that are whole or not there: mp4, gif, numbered PNG frames, a PNG image."""

from __future__ import annotations

import fractions
import io
import os
import shutil
from pathlib import Path

import av
import numpy as np
from PIL import Image

from models.files import sync_directory, write_atomic

# Constant quality of x264: 18 is taken for visually lossless.
_CRF = "18"
_GIF_TICK = 100  # a GIF counts in hundredths of a second


def to_bytes(x: np.ndarray) -> np.ndarray:
    """float [3, T, H, W] in [-1, 1] -> uint8 [T, H, W, 3], rounded to nearest. Values beyond are cut off."""
    scaled = (np.clip(x.astype(np.float32), -1, 1) + np.float32(1)) * np.float32(127.5)
    return np.ascontiguousarray((scaled + np.float32(0.5)).astype(np.uint8).transpose(1, 2, 3, 0))


def result_path(stem: Path, kind: str, frames: int) -> Path:
    """Where ``frames`` frames go: one is a PNG file, ``png`` of several a folder."""
    ending = ".png" if frames == 1 else "" if kind == "png" else f".{kind}"
    return stem.with_name(stem.name + ending)


def write_result(stem: Path, frames: np.ndarray, kind: str, fps: float) -> Path:
    """Writes uint8 [T, H, W, 3] and returns the path; kind: mp4, gif or png. What is there is replaced. OSError."""
    path = result_path(stem, kind, len(frames))
    path.parent.mkdir(parents=True, exist_ok=True)
    if len(frames) == 1:
        write_atomic(path, _png(frames[0]))
    elif kind == "png":
        _write_frames(path, frames)
    elif kind == "gif":
        write_atomic(path, _gif(frames, fps))
    else:
        _write_mp4(path, frames, fps)
    return path


def _png(frame: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(frame).save(data, "PNG")
    return data.getvalue()


def _gif(frames: np.ndarray, fps: float) -> bytes:
    """Durations are whole hundredths of a second: they are spread so that the whole keeps its length."""
    ends = np.round(np.arange(1, len(frames) + 1) * _GIF_TICK / fps)
    durations = np.maximum(np.diff(ends, prepend=0.0), 2).astype(int) * (1000 // _GIF_TICK)
    pictures = [Image.fromarray(frame).quantize(256, dither=Image.Dither.FLOYDSTEINBERG) for frame in frames]
    data = io.BytesIO()
    pictures[0].save(
        data, "GIF", save_all=True, append_images=pictures[1:], duration=durations.tolist(), loop=0, disposal=2
    )
    return data.getvalue()


def _write_frames(path: Path, frames: np.ndarray) -> None:
    """A folder with frame_0000.png, …; written beside and put in place at the end."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for number, frame in enumerate(frames):
            write_atomic(temporary / f"frame_{number:04d}.png", _png(frame), sync=False)
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
        sync_directory(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_mp4(path: Path, frames: np.ndarray, fps: float) -> None:
    """h264. yuv420p, which every player knows, has no odd sides: those are written as yuv444p."""
    _, height, width, _ = frames.shape
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    rate = fractions.Fraction(fps).limit_denominator(1001)
    try:
        with av.open(str(temporary), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=rate, options={"crf": _CRF})
            stream.width, stream.height = width, height
            stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
            for number, picture in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = number, 1 / rate
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise

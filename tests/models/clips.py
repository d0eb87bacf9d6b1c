"""Small clips and data sets for tests, made on the spot."""

from __future__ import annotations

import fractions
import struct
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

from models.text.hashed import embed

QUICKSTART = Path(__file__).parents[2] / "jobs" / "quickstart"


def make_clip(
    path: Path,
    frames: int = 24,
    *,
    size: tuple[int, int] = (48, 64),
    seed: int = 0,
    pix_fmt: str = "yuv420p",
    times: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """An h264 clip of ``frames`` different pictures; ``times`` are presentation times in 1/25 s."""
    height, width = size
    random = np.random.default_rng(seed)
    base = random.integers(0, 200, (height // 8, width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options=options or {"g": "8"})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.roll(base, number * 3, 1) + np.uint8(number), format="rgb24")
            frame.pts, frame.time_base = (times[number] if times else number), fractions.Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def rotate(path: Path, quarter_turns: int) -> Path:
    """Gives an mp4 the display matrix of a camera that was held turned: counter-clockwise, in quarter turns."""
    cosine, sine = [(1, 0), (0, -1), (-1, 0), (0, 1)][quarter_turns % 4]
    numbers = (cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30)
    data = bytearray(path.read_bytes())
    # The matrix lies 40 bytes behind the version of the track's header (ISO/IEC 14496-12, 8.3.2).
    start = data.index(b"tkhd") + 4 + 40
    data[start : start + 36] = struct.pack(">9i", *numbers)
    path.write_bytes(data)
    return path


def all_frames(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def make_dataset(
    folder: Path,
    clips: int = 4,
    *,
    frames: int = 24,
    channels: int = 8,
    length: int = 4,
    size: tuple[int, int] = (48, 64),
) -> Path:
    """``folder`` with clips, ``train.csv`` and ``text/``; the CSV."""
    rows = ["video,caption"]
    for number in range(clips):
        name = f"clip{number}.mp4"
        make_clip(folder / name, frames, size=size, seed=number)
        rows.append(f"{name},clip number {number}")
        write_embedding(folder / "text" / f"clip{number}.npz", f"clip number {number}", length, channels)
    (folder / "train.csv").write_text("\n".join(rows) + "\n")
    return folder / "train.csv"


def write_embedding(path: Path, caption: str, length: int = 4, channels: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text, mask = embed(caption, length, channels)
    np.savez(path, text_emb=text, mask=mask)


def damage(path: Path) -> None:
    """Keeps header and index of a clip and its first frames, and loses the rest of its pictures."""
    data = bytearray(path.read_bytes())
    start = data.find(b"mdat") + 4
    end = data.find(b"moov")
    middle = start + (end - start) * 7 // 10
    data[middle : end - 4] = bytes(end - 4 - middle)
    path.write_bytes(data)

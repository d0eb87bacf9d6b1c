"""The data of the story: hundreds of clips with captions, the real ones among them, and what is held out.

Four pairs of colour and direction never occur in the training clips, although each of their colours and directions
does.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import av
import numpy as np

from demos.shapes.scenes import COLOURS, DIRECTIONS, FPS, FRAMES, SHAPES, SIZE, Scene, frames_of, write_clip

HELD_OUT = (("red", "up"), ("green", "left"), ("blue", "down"), ("yellow", "right"))


@dataclass(frozen=True)
class Row:
    video: str
    caption: str


def seen_pairs() -> list[tuple[str, str]]:
    """Pairs of colour and direction that training clips show."""
    return [pair for pair in product(COLOURS, DIRECTIONS) if pair not in HELD_OUT]


def test_scenes() -> list[Scene]:
    """One scene for every pair of colour and direction, the held-out ones last."""
    pairs = [*seen_pairs(), *HELD_OUT]
    return [Scene(colour, direction, SHAPES[number % len(SHAPES)]) for number, (colour, direction) in enumerate(pairs)]


def make(folder: Path, clips: int, real: Path, seed: int = 7) -> dict[str, int]:
    """Writes ``folder``: videos/, train.csv (shapes, and pieces of real clips), held_out.csv (other shapes).

    clips: how many of shapes to train on. real: folder with annotations ``train.csv`` and real clips.
    Returns how many clips each file lists.
    """
    train = [_shape_clip(folder, "train", number, clips, seen_pairs(), seed) for number in range(clips)]
    held_out = max(8, clips // 20)
    other = [_shape_clip(folder, "held-out", number, held_out, seen_pairs(), seed + 1) for number in range(held_out)]
    train += _real_clips(folder, real)
    _write(folder / "train.csv", train)
    _write(folder / "held_out.csv", other)
    captions = [{"caption": scene.caption(), **vars(scene)} for scene in test_scenes()]
    (folder / "test.json").write_text(json.dumps(captions, indent=1) + "\n")
    with (folder / "prompts.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["prompt"], *([one["caption"]] for one in captions)])
    return {"train": len(train), "held_out": len(other), "prompts": len(captions)}


def _shape_clip(folder: Path, part: str, number: int, count: int, pairs: Sequence[tuple[str, str]], seed: int) -> Row:
    random = np.random.default_rng([seed, number])
    colour, direction = pairs[number % len(pairs)]
    scene = Scene(colour, direction, SHAPES[random.integers(len(SHAPES))])
    name = f"{part}/{number:0{len(str(count))}d}-{colour}-{direction}.mp4"
    write_clip(folder / "videos" / name, frames_of(scene, random))
    return Row(name, scene.caption(int(random.integers(3))))


def _real_clips(folder: Path, real: Path) -> list[Row]:
    """The real clips, cut to the length of the others, with their own captions."""
    rows = []
    with (real / "train.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            frames = _centre(_decode(real / row["video"], FRAMES))
            write_clip(folder / "videos" / "real" / row["video"], frames)
            rows.append(Row(f"real/{row['video']}", row["caption"]))
    return rows


def _decode(path: Path, frames: int) -> list[np.ndarray]:
    """Every second frame from the start, small."""
    pictures = []
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number % 2 == 0:
                scale = SIZE / min(frame.width, frame.height)
                small = frame.reformat(round(frame.width * scale), round(frame.height * scale), "rgb24")
                pictures.append(small.to_ndarray())
            if len(pictures) == frames:
                break
    return pictures


def _centre(pictures: list[np.ndarray]) -> np.ndarray:
    height, width = pictures[0].shape[:2]
    top, left = (height - SIZE) // 2, (width - SIZE) // 2
    return np.stack(pictures)[:, top : top + SIZE, left : left + SIZE]


def _write(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("video", "caption"))
        writer.writerows((row.video, row.caption) for row in rows)


def clear(folder: Path) -> None:
    """Removes what an earlier telling left in ``folder``."""
    for name in ("videos", "train.csv", "held_out.csv", "test.json", "prompts.csv"):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


__all__ = ["FPS", "HELD_OUT", "Row", "clear", "make", "seen_pairs", "test_scenes"]

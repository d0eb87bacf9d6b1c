"""What the story achieved: quality of the autoencoder, what the videos show, a picture, a table."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from demos.shapes.dataset import HELD_OUT, test_scenes
from demos.shapes.judge import look
from demos.shapes.scenes import Scene, frames_of
from demos.shapes.sheet import Entry, contact_sheet

LEAST_PSNR, LEAST_RIGHT = 24.0, 16
# Scenes whose first frame is given: every third, so that all colours and directions occur.
_CONTINUED = test_scenes()[::3]


@dataclass(frozen=True)
class Score:
    """How many of ``count`` videos show the right colour, the right direction, and both."""

    count: int
    colour: int
    direction: int
    both: int


@dataclass(frozen=True)
class Results:
    """psnr: dB, mean over held-out clips. Scores of videos from captions (of all, of pairs never seen together in
    training, of an untrained model) and of continued pictures."""

    psnr: float
    videos: Score
    held_out: Score
    untrained: Score
    continued: Score
    minutes: float

    @property
    def good(self) -> bool:
        return self.psnr >= LEAST_PSNR and self.videos.both >= LEAST_RIGHT


def tell(folder: Path, notes: dict[str, Any]) -> Results:
    """Judges all videos, writes results.json and the contact sheet, prints the table."""
    scenes = test_scenes()
    trained = _judged(notes["videos"]["made"], scenes)
    untrained = _judged(notes["untrained_videos"]["made"], scenes)
    continued = _judged(notes["pictures_continued"]["made"], _CONTINUED)
    results = Results(
        psnr=round(float(notes["vae_quality"]["made"]["mean"]["psnr"]), 2),
        videos=_score(trained),
        held_out=_score([one for one in trained if (one.scene.colour, one.scene.direction) in HELD_OUT]),
        untrained=_score(untrained),
        continued=_score(continued),
        minutes=round(sum(note["seconds"] for note in notes.values()) / 60, 1),
    )
    (folder / "results.json").write_text(json.dumps({**asdict(results), "good": results.good}, indent=1) + "\n")
    marked = [_entry(one, "never seen together: ") for one in trained if _is_new(one.scene)]
    plain = [_entry(one, "") for one in trained if not _is_new(one.scene)]
    pictures = [_entry(one, "first frame given: ") for one in continued]
    contact_sheet(folder / "contact-sheet.png", [*plain, *marked, *pictures])
    print("\n" + "\n".join(_table(results)) + f"\n\ncontact sheet: {folder / 'contact-sheet.png'}")
    return results


def latent_statistics(folder: Path) -> dict[str, list[float]]:
    """``shift`` and ``scale`` by channel: mean and standard deviation of latents drawn from what is cached in
    ``folder``. Of draws, not of means: a channel that the autoencoder leaves unused is all deviation."""
    means, variances = [], []
    for path in sorted(folder.rglob("*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            means.append(_by_channel(arrays["latent_mean"]))
            variances.append(_by_channel(arrays["latent_std"]) ** 2)
    values = np.concatenate(means, axis=1)
    deviation = np.sqrt(values.var(1) + np.concatenate(variances, axis=1).mean(1))
    return {"shift": [round(float(x), 4) for x in values.mean(1)], "scale": [round(float(x), 4) for x in deviation]}


def _by_channel(latents: np.ndarray) -> np.ndarray:
    """[T, C, h, w] -> [C, T h w]"""
    return latents.transpose(1, 0, 2, 3).reshape(latents.shape[1], -1)


def reference_pictures(folder: Path) -> Path:
    """First frames of new scenes as pictures, and a CSV of prompts that continue them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [["prompt", "reference_path", "mask_strategy"]]
    for number, scene in enumerate(_CONTINUED):
        path = folder / f"{number:02d}-{scene.colour}-{scene.direction}.png"
        Image.fromarray(frames_of(scene, np.random.default_rng([11, number]))[0]).save(path)
        rows.append([scene.caption(), str(path), "0"])
    with (folder / "prompts.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return folder / "prompts.csv"


@dataclass(frozen=True)
class _Judged:
    scene: Scene
    frames: np.ndarray
    colour: bool
    direction: bool


def _judged(records: Sequence[dict[str, Any]], scenes: Sequence[Scene]) -> list[_Judged]:
    """The videos in the order of ``scenes``, whose captions were their prompts."""
    paths = {record["prompt"]: Path(record["path"]) for record in records}
    judged = []
    for scene in scenes:
        frames = _decode(paths[scene.caption()])
        seen = look(frames)
        judged.append(_Judged(scene, frames, seen.colour == scene.colour, seen.direction == scene.direction))
    return judged


def _decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def _is_new(scene: Scene) -> bool:
    return (scene.colour, scene.direction) in HELD_OUT


def _entry(one: _Judged, prefix: str) -> Entry:
    return Entry(prefix + one.scene.caption(), one.frames.repeat(2, 1).repeat(2, 2), one.colour and one.direction)


def _score(judged: Sequence[_Judged]) -> Score:
    return Score(
        len(judged),
        sum(one.colour for one in judged),
        sum(one.direction for one in judged),
        sum(one.colour and one.direction for one in judged),
    )


def _table(results: Results) -> list[str]:
    rows = [
        ("videos from captions", results.videos),
        ("  colour and direction never seen together", results.held_out),
        ("  by the untrained model", results.untrained),
        ("pictures continued", results.continued),
    ]
    lines = [f"{'':<44} {'colour':>8} {'direction':>10} {'both':>8}"]
    for name, score in rows:
        parts = [f"{number} of {score.count}" for number in (score.colour, score.direction, score.both)]
        lines.append(f"{name:<44} {parts[0]:>8} {parts[1]:>10} {parts[2]:>8}")
    lines.append(f"autoencoder on held-out clips: PSNR {results.psnr:.2f} dB (at least {LEAST_PSNR:.0f})")
    lines.append(
        f"told in {results.minutes:.0f} minutes; {'as it should be' if results.good else 'NOT as it should be'}"
    )
    return lines

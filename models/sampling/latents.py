"""Latents between sampling and decoding, and clips of several loops put together."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.exits import BAD_DATA, PayloadError
from models.files import write_atomic


@dataclass(frozen=True)
class Sampled:
    """What was sampled for one result: latents float32 [loops, C, t, h, w] and what its record says of it.

    frames: of a clip, decoded. repeated: frames at the start of every clip but the first that the one before ends with.
    """

    stem: str
    latents: np.ndarray
    frames: int
    repeated: int
    facts: dict[str, Any]


def join_clips(clips: Sequence[np.ndarray], repeated: int) -> np.ndarray:
    """Clips [C, T, H, W] one after the other, without the frames that repeat the end of the one before."""
    return np.concatenate([clips[0], *(clip[:, repeated:] for clip in clips[1:])], axis=1)


def write_latents(folder: Path, sampled: Sampled) -> Path:
    """``<folder>/<stem>.npz``: ``latents``, and the rest as JSON in ``facts``."""
    told = {"frames": sampled.frames, "repeated": sampled.repeated, **sampled.facts}
    data = io.BytesIO()
    np.savez(data, latents=sampled.latents, facts=np.array(json.dumps(told, ensure_ascii=False)))
    path = folder / f"{sampled.stem}.npz"
    write_atomic(path, data.getvalue())
    return path


def read_latents(folder: Path, path: Path) -> Sampled:
    """What :func:`write_latents` wrote. PayloadError names the file that is damaged or of another kind."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            latents, facts = arrays["latents"], json.loads(str(arrays["facts"]))
        stem = path.relative_to(folder).as_posix().removesuffix(".npz")
        if latents.ndim != 5:
            raise ValueError(f"latents have the shape {list(latents.shape)} instead of [loops, C, T, H, W]")
        return Sampled(stem, latents, int(facts.pop("frames")), int(facts.pop("repeated")), facts)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, EOFError) as error:
        raise PayloadError(
            BAD_DATA, "a file of latents cannot be read", where=str(path), why=str(error),
            next_step="run stage: latents again",
        ) from None  # fmt: skip

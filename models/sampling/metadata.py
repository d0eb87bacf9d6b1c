"""Sizes and rates as the networks take them, latent frames as pixel frames, and names of results.

Upstream: opensora/utils/inference_utils.py (v1.2).
"""

from __future__ import annotations

from pathlib import PurePath

import numpy as np

IMAGE_FPS = 120  # stands for "this is an image"
LATENT_CHUNK, PIXEL_CHUNK = 5, 17  # the v1.2 autoencoder turns 17 frames into 5
KINDS = (None, "PixArtMS", "STDiT2", "OpenSora")


def multi_resolution_info(
    kind: str | None, batch: int, image_size: tuple[int, int], num_frames: int, fps: float
) -> dict[str, np.ndarray]:
    """What a network of ``kind`` wants to know of (height, width) in pixels, frames and frames a second, float32.

    ``STDiT2`` and ``OpenSora``: height, width, num_frames, ar (height / width) and fps, [batch] each; one frame is an
    image and has fps 120. ``PixArtMS``: hw [batch, 2] and ar [batch, 1]. None: nothing. ValueError for another kind.
    """
    height, width = image_size
    if kind is None:
        return {}
    if kind == "PixArtMS":
        return {
            "ar": np.full((batch, 1), height / width, np.float32),
            "hw": np.tile(np.array([[height, width]], np.float32), (batch, 1)),
        }
    if kind not in KINDS:
        raise ValueError(f"unknown kind of size information {kind!r}; known: {', '.join(map(str, KINDS))}")
    values = {
        "height": height,
        "width": width,
        "num_frames": num_frames,
        "ar": height / width,
        "fps": fps if num_frames > 1 else IMAGE_FPS,
    }
    return {name: np.full(batch, value, np.float32) for name, value in values.items()}


def pixel_frames(latent_frames: int, latent_chunk: int = LATENT_CHUNK, pixel_chunk: int = PIXEL_CHUNK) -> int:
    """Frames that latent frames decode to. ValueError unless they are whole chunks of the autoencoder."""
    if latent_frames % latent_chunk:
        raise ValueError(f"{latent_frames} latent frames are not whole chunks of {latent_chunk}")
    return latent_frames // latent_chunk * pixel_chunk


def sample_path(
    folder: str | PurePath,
    index: int | None = None,
    name: str | None = None,
    prompt: str | None = None,
    prompt_as_path: bool = False,
    samples: int = 1,
    sample: int | None = None,
) -> PurePath:
    """Where a result goes, without its ending: ``folder/sample_0003``, or ``folder/<prompt>``.

    ``name`` goes before the number or the prompt; with several ``samples`` of a prompt, ``-<sample>`` after it.
    A slash in a prompt becomes ``_``: upstream would put the result into another folder. ValueError where the part
    that is asked for is missing.
    """
    if prompt_as_path:
        if prompt is None:
            raise ValueError("a result named after its prompt needs a prompt")
        stem = (name or "") + prompt.replace("/", "_")
    else:
        if index is None:
            raise ValueError("a numbered result needs its number")
        stem = f"{'sample' if name is None else name}_{index:04d}"
    return PurePath(folder) / (f"{stem}-{sample}" if samples != 1 else stem)

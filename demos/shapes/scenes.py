"""Clips of one coloured shape moving over a dark ground, with the caption that says so."""

from __future__ import annotations

import fractions
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

SIZE, FRAMES, FPS = 32, 17, 8
COLOURS = {
    "red": (225, 45, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 230),
    "yellow": (230, 210, 40),
    "magenta": (210, 50, 205),
}
# Pixels a frame, rows downwards and columns to the right.
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
SHAPES = ("square", "circle", "triangle")
_WORDINGS = (
    "a {colour} {shape} moving {direction}",
    "a {colour} {shape} moves {direction}",
    "a {shape}, {colour}, going {direction}",
)
# Drawn at this many times the size and averaged down; then edges are blurred as by a lens a little out of focus, for
# hard ones lie where 8 x 8 latents cannot say.
_FINER = 4
_BLUR = np.exp(-0.5 * np.arange(-3, 4) ** 2)


@dataclass(frozen=True)
class Scene:
    """What a clip shows."""

    colour: str
    direction: str
    shape: str

    def caption(self, wording: int = 0) -> str:
        words = {"colour": self.colour, "direction": self.direction, "shape": self.shape}
        return _WORDINGS[wording % len(_WORDINGS)].format(**words)


def frames_of(scene: Scene, random: np.random.Generator, frames: int = FRAMES, size: int = SIZE) -> np.ndarray:
    """uint8 [frames, size, size, 3]: the shape crosses about half of the picture; place, speed and size vary."""
    radius = random.uniform(0.11, 0.16) * size
    travel = random.uniform(0.42, 0.55) * size
    along = np.linspace(-0.5, 0.5, frames) * travel
    step = np.array(DIRECTIONS[scene.direction], float)
    room = size / 2 - radius - 2
    middle = size / 2 + random.uniform(-1, 1, 2) * np.where(step == 0, room * 0.8, max(0.0, room - travel / 2))
    ground = np.array([random.uniform(15, 45)] * 3)
    colour = np.array(COLOURS[scene.colour], float) * random.uniform(0.92, 1.05)
    pictures = []
    for place in along:
        inside = _coverage(scene.shape, middle + step * place, radius, size)[..., None]
        pictures.append(ground * (1 - inside) + colour * inside)
    return np.clip(np.stack(pictures), 0, 255).round().astype(np.uint8)


def _coverage(shape: str, centre: np.ndarray, radius: float, size: int) -> np.ndarray:
    """How much of every pixel the shape covers, float [size, size]."""
    grid = (np.arange(size * _FINER) + 0.5) / _FINER
    down, right = grid[:, None] - centre[0], grid[None, :] - centre[1]
    if shape == "square":
        inside = np.maximum(abs(down), abs(right)) <= radius * 0.88
    elif shape == "circle":
        inside = down**2 + right**2 <= radius**2
    else:
        inside = (down <= radius * 0.9) & (abs(right) * 1.7 <= down + radius * 1.1)
    return _blurred(inside.reshape(size, _FINER, size, _FINER).mean((1, 3)))


def _blurred(picture: np.ndarray) -> np.ndarray:
    kernel = _BLUR / _BLUR.sum()
    for axis in (0, 1):
        picture = np.apply_along_axis(np.convolve, axis, picture, kernel, "same")
    return picture


def write_clip(path: Path, frames: np.ndarray, fps: int = FPS) -> None:
    """``frames`` uint8 [T, H, W, 3] as h264, with colours at full resolution so that little is lost."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "10"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.codec_context.thread_count = "yuv444p", 1
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, fractions.Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())

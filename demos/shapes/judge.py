"""What a video shows, measured: the colour that stands out, and where it moves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from demos.shapes.scenes import COLOURS, DIRECTIONS

# Saturation (0..255) from which a pixel belongs to the shape; the ground is grey.
_COLOURED = 60
# Least part of the picture that a shape covers, and least way it goes, in parts of the picture's side.
_LEAST_AREA, _LEAST_WAY = 0.008, 0.1


@dataclass(frozen=True)
class Seen:
    """Colour and direction, or why there are none. ``way``: rows and columns the shape went, in parts of the side."""

    colour: str | None
    direction: str | None
    way: tuple[float, float] = (0.0, 0.0)
    reason: str = ""


def look(frames: np.ndarray) -> Seen:
    """frames: uint8 [T, H, W, 3].

    The shape is where colours are saturated. Its colour is the named one nearest in hue to its mean; its direction the
    axis along which its centre of mass went farther, from the first third of the frames to the last.
    """
    wide = frames.astype(float)
    saturation = wide.max(-1) - wide.min(-1)
    weight = np.where(saturation >= _COLOURED, saturation, 0.0)
    area = (weight > 0).mean((1, 2))
    if (area < _LEAST_AREA).mean() > 0.34:
        return Seen(None, None, reason="nothing coloured in more than a third of the frames")
    mean = (wide * weight[..., None]).sum((0, 1, 2)) / weight.sum()
    colour = min(COLOURS, key=lambda name: _hue_distance(mean, np.array(COLOURS[name], float)))
    way = _way(weight)
    if max(map(abs, way)) < _LEAST_WAY:
        return Seen(colour, None, way, "it stays where it is")
    direction = max(DIRECTIONS, key=lambda name: float(np.dot(DIRECTIONS[name], way)))
    return Seen(colour, direction, way)


def _way(weight: np.ndarray) -> tuple[float, float]:
    """How far the centre of mass goes, (rows, columns) in parts of the picture's sides."""
    total = weight.sum((1, 2))
    shown = total > 0
    rows = (weight.sum(2) @ np.arange(weight.shape[1]))[shown] / total[shown] / weight.shape[1]
    columns = (weight.sum(1) @ np.arange(weight.shape[2]))[shown] / total[shown] / weight.shape[2]
    third = max(1, len(rows) // 3)
    return tuple(float(place[-third:].mean() - place[:third].mean()) for place in (rows, columns))  # type: ignore[return-value]


def _hue_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Angle between two hues, 0 to pi."""
    return float(abs(np.angle(np.exp(1j * (_hue(one) - _hue(other))))))


def _hue(colour: np.ndarray) -> float:
    """Angle on the colour circle, radians (red 0, green 2 pi/3, blue 4 pi/3)."""
    red, green, blue = colour
    return float(np.arctan2(np.sqrt(3.0) * (green - blue), 2 * red - green - blue))

"""Resize and crop of clips and images to a training size, as Open-Sora does it. numpy and Pillow only.

Upstream: opensora/datasets/video_transforms.py and opensora/datasets/utils.py (branch opensora/v1.2). Clips are resized
bilinearly without antialiasing, with the float32 arithmetic of torch.nn.functional.interpolate (align_corners=False,
half-pixel centres), bit for bit; images by Pillow's antialiased bicubic filter. Results are in [-1, 1], channels first.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

Size = tuple[int, int]
# Two numbers in [0, 1): where between top and bottom, and left and right, a window lies; for random crops.
Place = tuple[float, float]


def resize_crop_to_fill_video(frames: np.ndarray, size: Size, place: Place | None = None) -> np.ndarray:
    """uint8 [T, H, W, 3] -> float32 [T, 3, h, w]: scaled to cover ``size`` (height, width), middle cut out.

    place: where to cut instead, see ``Place``.
    """
    _check_video(frames)
    (scaled_h, scaled_w), (top, left) = _cover(frames.shape[1:3], size, video=True)
    if place is not None:
        top, left = _corner((scaled_h, scaled_w), size, place)
    ratios = (frames.shape[1] / scaled_h, frames.shape[2] / scaled_w)
    return _bilinear_window(frames, ratios, (top, left), size)


def center_crop_video(frames: np.ndarray, size: int) -> np.ndarray:
    """uint8 [T, H, W, 3] -> float32 [T, 3, size, size]: short side scaled to ``size``, middle square cut out."""
    return short_side_crop_video(frames, (size, size))


def short_side_crop_video(frames: np.ndarray, size: Size) -> np.ndarray:
    """uint8 [T, H, W, 3] -> float32 [T, 3, h, w]: short side scaled to the height h, middle h x w cut out.

    ValueError where the scaled clip is narrower than w.
    """
    _check_video(frames)
    height, width = frames.shape[1:3]
    factor = size[0] / min(height, width)
    # Rounding may leave the product one short of ``size``; upstream refuses such a clip.
    scaled = tuple(max(math.floor(side * factor), size[0]) for side in (height, width))
    if scaled[1] < size[1]:
        raise ValueError(f"is {scaled[1]} wide when its short side is {size[0]}, {size[1]} are needed")
    offsets = (round((scaled[0] - size[0]) / 2.0), round((scaled[1] - size[1]) / 2.0))
    return _bilinear_window(frames, (1.0 / factor, 1.0 / factor), offsets, size)


def resize_video(frames: np.ndarray, size: Size) -> np.ndarray:
    """uint8 [T, H, W, 3] -> float32 [T, 3, h, w]: the whole picture, stretched to ``size``."""
    _check_video(frames)
    return _bilinear_window(frames, (frames.shape[1] / size[0], frames.shape[2] / size[1]), (0, 0), size)


def resize_crop_to_fill_image(image: np.ndarray | Image.Image, size: Size, place: Place | None = None) -> np.ndarray:
    """uint8 [H, W, 3] or an RGB image -> float32 [3, h, w]: scaled to cover ``size``, middle, or ``place``, cut out."""
    picture = _as_image(image)
    (scaled_h, scaled_w), (top, left) = _cover((picture.height, picture.width), size, video=False)
    if place is not None:
        top, left = _corner((scaled_h, scaled_w), size, place)
    pixels = np.asarray(picture.resize((scaled_w, scaled_h), Image.Resampling.BICUBIC))
    return _normalised(pixels[top : top + size[0], left : left + size[1]])


def center_crop_image(image: np.ndarray | Image.Image, size: int) -> np.ndarray:
    """uint8 [H, W, 3] or an RGB image -> float32 [3, size, size], the way of ADM (Dhariwal & Nichol 2021).

    Halved by box averaging while the short side is at least twice ``size``, then bicubic, then the middle square.
    """
    picture = _as_image(image)
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    factor = size / min(picture.size)
    scaled = (round(picture.width * factor), round(picture.height * factor))
    pixels = np.asarray(picture.resize(scaled, Image.Resampling.BICUBIC))
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return _normalised(pixels[top : top + size, left : left + size])


def _check_video(frames: np.ndarray) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames must be uint8 [T, H, W, 3], got {frames.dtype} {list(frames.shape)}")


def _as_image(image: np.ndarray | Image.Image) -> Image.Image:
    return image if isinstance(image, Image.Image) else Image.fromarray(image)


def _cover(source: tuple[int, ...], size: Size, video: bool) -> tuple[Size, Size]:
    """(scaled height, width) that covers ``size``, and the (top, left) corner of its middle.

    Clips and images round the corner differently upstream: int(round(d) / 2) and round(d / 2).
    """
    height, width = source
    ratio_h, ratio_w = size[0] / height, size[1] / width
    if ratio_h > ratio_w:
        scaled = (size[0], round(width * ratio_h))
    else:
        scaled = (round(height * ratio_w), size[1])
    excess = (scaled[0] - size[0], scaled[1] - size[1])
    top, left = (e // 2 if video else round(e / 2.0) for e in excess)
    return scaled, (top, left)


def _corner(scaled: Size, size: Size, place: Place) -> Size:
    """(top, left) of the window at ``place``; all positions are equally wide."""
    top, left = (int(draw * (whole - part + 1)) for draw, whole, part in zip(place, scaled, size, strict=True))
    return top, left


def _normalised(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> float32 [3, H, W] in [-1, 1]."""
    scaled = pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    return (scaled - np.float32(0.5)) / np.float32(0.5)


def _fused(a: np.ndarray, b: np.ndarray | float, c: np.ndarray | float) -> np.ndarray:
    """float32 a * b + c rounded once, as a fused multiply-add does. a is float64 holding float32 values."""
    return (a * b + c).astype(np.float32)


def _taps(count: int, ratio: float, offset: int, limit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Indices (below, above) int [count] and float32 weights of both, for output positions from ``offset`` on."""
    positions = np.arange(offset, offset + count, dtype=np.float64) + 0.5
    centres = np.maximum(_fused(positions, float(np.float32(ratio)), -0.5), np.float32(0))
    below = np.minimum(centres.astype(np.int64), limit - 1)
    above = np.minimum(below + 1, limit - 1)
    weight = np.clip(centres - below.astype(np.float32), np.float32(0), np.float32(1))
    return below, above, np.float32(1) - weight, weight


_UNIT = (np.arange(256, dtype=np.float32) / np.float32(255)).astype(np.float64)


def _bilinear_window(frames: np.ndarray, ratios: tuple[float, float], offsets: Size, size: Size) -> np.ndarray:
    """The window of ``size`` at ``offsets`` of the resized clip, float32 [T, 3, h, w] in [-1, 1].

    ratios: source pixels per output pixel along (height, width). Only the window is computed. The four neighbours are
    added in the order torch's kernel adds them, each with a fused multiply-add.
    """
    y0, y1, wy0, wy1 = _taps(size[0], ratios[0], offsets[0], frames.shape[1])
    x0, x1, wx0, wx1 = _taps(size[1], ratios[1], offsets[1], frames.shape[2])
    order = ((y0, x1, wy0, wx1), (y0, x0, wy0, wx0), (y1, x0, wy1, wx0), (y1, x1, wy1, wx1))
    weights = [np.outer(wy, wx).astype(np.float64)[:, :, None] for _, _, wy, wx in order]
    out = np.empty((frames.shape[0], 3, *size), np.float32)
    for index, frame in enumerate(frames):
        total: np.ndarray | float = 0.0
        for (rows, columns, _, _), weight in zip(order, weights, strict=True):
            pixels = frame.take(rows, axis=0).take(columns, axis=1)
            total = _fused(_UNIT.take(pixels), weight, total)
        out[index] = np.asarray(total).transpose(2, 0, 1)
    out -= np.float32(0.5)
    out /= np.float32(0.5)
    return out

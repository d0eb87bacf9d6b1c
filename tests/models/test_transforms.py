"""Resize and crop: geometry and edge cases. Exact numbers are in test_parity."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from models.data.transforms import (
    center_crop_image,
    center_crop_video,
    resize_crop_to_fill_image,
    resize_crop_to_fill_video,
)


def clip(frames: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("source", [(17, 23), (23, 17), (64, 64), (1, 1), (9, 300)])
@pytest.mark.parametrize("size", [(16, 16), (32, 56), (21, 13)])
def test_sizes_and_range(source: tuple[int, int], size: tuple[int, int]) -> None:
    frames = clip(2, *source)
    for out in (resize_crop_to_fill_video(frames, size), resize_crop_to_fill_image(frames[0], size)[None]):
        assert (out.dtype, out.shape[1:]) == (np.float32, (3, *size))
        assert out.min() >= -1
        assert out.max() <= 1
    assert center_crop_video(frames, size[0]).shape == (2, 3, size[0], size[0])
    assert center_crop_image(frames[0], size[0]).shape == (3, size[0], size[0])


def test_same_size_changes_no_pixel() -> None:
    frames = clip(2, 12, 20)
    expected = (frames.transpose(0, 3, 1, 2) / 255.0 - 0.5) / 0.5
    np.testing.assert_allclose(resize_crop_to_fill_video(frames, (12, 20)), expected, atol=1e-6)
    np.testing.assert_allclose(resize_crop_to_fill_image(frames[0], (12, 20)), expected[0], atol=1e-6)


def test_the_middle_is_kept() -> None:
    frames = np.zeros((1, 8, 24, 3), np.uint8)
    frames[:, :, 8:16] = 255
    np.testing.assert_array_equal(resize_crop_to_fill_video(frames, (8, 8)), np.ones((1, 3, 8, 8), np.float32))
    tall = np.ascontiguousarray(frames.transpose(0, 2, 1, 3))
    np.testing.assert_array_equal(resize_crop_to_fill_video(tall, (8, 8)), np.ones((1, 3, 8, 8), np.float32))


def test_halving_averages_pairs() -> None:
    frames = clip(1, 4, 8)
    pixels = frames[0].astype(np.float64) / 255
    expected = pixels.reshape(2, 2, 4, 2, 3).mean((1, 3)).transpose(2, 0, 1)
    np.testing.assert_allclose(resize_crop_to_fill_video(frames, (2, 4))[0], expected * 2 - 1, atol=1e-6)


def test_images_may_be_pillows() -> None:
    pixels = clip(1, 30, 40)[0]
    image = Image.fromarray(pixels)
    np.testing.assert_array_equal(
        resize_crop_to_fill_image(image, (10, 12)), resize_crop_to_fill_image(pixels, (10, 12))
    )
    np.testing.assert_array_equal(center_crop_image(image, 9), center_crop_image(pixels, 9))


@pytest.mark.parametrize("bad", [np.zeros((2, 4, 4, 3), np.float32), np.zeros((4, 4, 3), np.uint8)])
def test_other_arrays_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        resize_crop_to_fill_video(bad, (2, 2))

"""Sizes that keep the aspect ratio, and batches of equal ones."""

from __future__ import annotations

import numpy as np
import pytest

from models.config import TrainConfig
from models.data.bucket import Shape
from models.data.catalogue import Clip
from models.data.choosing import common_shape, make_order, unfit_rule
from models.data.decode import Header
from models.data.fit import fit_size


@pytest.mark.parametrize(
    ("source", "size"),
    [
        ((720, 1280), (384, 672)),  # the size the reference's documents name for 16:9 under 512
        ((1280, 720), (672, 384)),
        ((512, 512), (512, 512)),
        ((2000, 2000), (512, 512)),
        ((100, 100), (96, 96)),  # not enlarged
        ((120, 120), (128, 128)),  # to the nearest multiple
        ((4, 4), (16, 16)),
        ((10, 5000), (16, 4992)),
        ((513, 513), (512, 512)),
        ((1000, 262), (992, 256)),
    ],
)
def test_sizes(source: tuple[int, int], size: tuple[int, int]) -> None:
    assert fit_size(*source, 512, 16) == size


def test_no_size_is_too_large_or_far_from_its_aspect_ratio() -> None:
    random = np.random.default_rng(0)
    for height, width in random.integers(64, 2000, (300, 2)):
        rows, columns = fit_size(int(height), int(width), 256, 16)
        assert rows % 16 == columns % 16 == 0
        assert rows * columns <= 256 * 256
        limit = min(1.0, 256 / np.sqrt(height * width))
        assert abs(rows - height * limit) < 16 and abs(columns - width * limit) < 16


def config(**data: object) -> TrainConfig:
    values = {
        "model": {"in_channels": 3, "patch_size": [1, 2, 2]},
        "autoencoder": {"type": "identity"},
        "data": {"max_image_size": 32, "num_frames": 4, **data},
        "batch_size": 2,
    }
    return TrainConfig.model_validate(values)


def clips(*sizes: tuple[int, int]) -> list[Clip]:
    from pathlib import Path

    return [Clip(str(n), Path(str(n)), Header(9, *size, 25.0), None) for n, size in enumerate(sizes)]


def test_batches_hold_one_size() -> None:
    chosen = clips((36, 64), (64, 36), (36, 64), (64, 36), (36, 64))
    assert common_shape(config(), chosen) is None
    order = make_order(config(), 2, chosen, None)
    seen = set()
    for step in range(12):
        batch = order.batch(step)
        assert len(batch.samples) == 4
        upright = {chosen[sample.clip].header.height > 36 for sample in batch.samples}
        assert upright == {batch.shape.height > batch.shape.width}
        seen.add(batch.shape)
    assert seen == {Shape(4, 24, 42), Shape(4, 42, 24)}


def test_clips_of_one_size_are_one_shape() -> None:
    assert common_shape(config(), clips((36, 64), (72, 128))) == Shape(4, 24, 42)
    assert unfit_rule(config(), None)(Header(3, 36, 64, 25.0)) == "has 3 frames, 4 are needed"

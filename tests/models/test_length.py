"""How long a training lasts, in steps and in epochs."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from models.config import CheckpointConfig, DataConfig, TrainConfig
from models.data.bucket import Buckets, Shape
from models.data.order import ClipSize, DealtOrder, FixedOrder, by_size
from models.length import Length

SHAPE = Shape(4, 8, 8)


def epochs(number: int, every: int | None = None) -> TrainConfig:
    return TrainConfig(steps=None, epochs=number, checkpoint=CheckpointConfig(every=5, every_epochs=every))


def test_steps() -> None:
    length = Length(TrainConfig(steps=12, checkpoint=CheckpointConfig(every=5)), FixedOrder(0, 10, SHAPE, 4))
    assert [step for step in range(1, 13) if length.saves(step)] == [5, 10, 12]
    assert (length.total, length.reached(11), length.reached(12)) == (12, False, True)


def test_epochs_of_one_shape_are_known_before() -> None:
    # 3 epochs of 10 clips in batches of 4: 7 whole batches and a half.
    length = Length(epochs(3), FixedOrder(0, 10, SHAPE, 4))
    assert (length.total, length.bound, str(length)) == (8, 8, "3 epochs of 8 steps together")


def test_checkpoints_by_epoch() -> None:
    order = FixedOrder(0, 10, SHAPE, 4)
    length = Length(epochs(6, every=2), order)
    assert length.total == 15
    # Sample 20 is the first of epoch 2, sample 40 the first of epoch 4.
    assert [step for step in range(1, 16) if length.saves(step)] == [5, 10, 15]


def test_epochs_of_buckets_end_when_the_data_has_gone_by() -> None:
    config = DataConfig.model_validate({"bucket_config": {"144p": {1: [1.0, 2]}, "240p": {1: [1.0, 3]}}})
    clips = [ClipSize(1, 144, 256)] * 5 + [ClipSize(1, 240, 426)] * 7
    order = DealtOrder(0, len(clips), by_size(clips, Buckets(config.bucket_config or {}), 1), 1)
    length = Length(epochs(4), order)
    assert length.total is None and str(length) == "4 epochs"
    steps = next(step for step in range(1, 100) if length.reached(step))
    # 20 clips in batches of 2 and 28 in batches of 3, but for what is left in the buckets; then the first of epoch 4.
    assert 18 <= steps <= 20
    assert order.position(steps)["epoch"] == 4 and order.position(steps - 1)["epoch"] == 3
    assert length.saves(steps)


def test_one_of_them_is_said() -> None:
    with pytest.raises(ValidationError, match="set one to null"):
        TrainConfig(epochs=3)
    with pytest.raises(ValidationError, match="neither steps nor epochs"):
        TrainConfig(steps=None)

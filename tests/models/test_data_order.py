"""The order of samples: a function of seed, step and global batch alone."""

from __future__ import annotations

import pytest

from models.config import DataConfig
from models.data.bucket import Buckets, Shape
from models.data.order import ClipSize, DealtOrder, FixedOrder, Sample, by_size, slots
from models.exits import PayloadError

SHAPE = Shape(4, 8, 8)


def by_rank(ranks: int, micro_steps: int, global_size: int, steps: int) -> list[list[Sample]]:
    """What all ranks together train on, step by step, in the order of the slots."""
    order = FixedOrder(3, 10, SHAPE, global_size)
    sequence = []
    for step in range(steps):
        samples = order.batch(step).samples
        used = [slot for rank in range(ranks) for part in slots(global_size, rank, ranks, micro_steps) for slot in part]
        assert sorted(used) == list(range(global_size))
        sequence.append([samples[slot] for slot in used])
    return sequence


def test_sequence_does_not_depend_on_ranks_or_accumulation() -> None:
    alone = by_rank(1, 1, 8, 12)
    assert by_rank(2, 1, 8, 12) == alone
    assert by_rank(4, 1, 8, 12) == alone
    assert by_rank(2, 4, 8, 12) == alone


def test_uneven_split_is_refused() -> None:
    with pytest.raises(ValueError, match="not a multiple"):
        slots(6, 0, 4, 1)


def test_every_epoch_visits_every_clip_once() -> None:
    order = FixedOrder(0, 10, SHAPE, 4)
    samples = [sample for step in range(5) for sample in order.batch(step).samples]
    assert sorted(sample.clip for sample in samples[:10]) == list(range(10))
    assert sorted(sample.clip for sample in samples[10:]) == list(range(10))
    assert [sample.clip for sample in samples[:10]] != [sample.clip for sample in samples[10:]]


def test_batch_larger_than_the_data() -> None:
    batch = FixedOrder(0, 3, SHAPE, 8).batch(1)
    assert len(batch.samples) == 8
    assert len({(sample.epoch, sample.place) for sample in batch.samples}) == 8


def test_steps_can_be_asked_in_any_order() -> None:
    straight = FixedOrder(5, 7, SHAPE, 4)
    expected = [straight.batch(step) for step in range(20)]
    resumed = FixedOrder(5, 7, SHAPE, 4)
    assert resumed.batch(13) == expected[13]
    assert resumed.batch(2) == expected[2]
    assert resumed.position(13) == {"epoch": 52 // 7, "index": 52 % 7}
    assert FixedOrder(6, 7, SHAPE, 4).batch(0) != expected[0]


def bucket_order(replicas: int = 2, keep: float = 1.0) -> DealtOrder:
    config = DataConfig.model_validate(
        {"bucket_config": {"144p": {16: [keep, 2], 51: [[keep, 0.5], 1]}, "240p": {16: [keep * 0.5, 1]}}}
    )
    assert config.bucket_config is not None
    clips = [ClipSize(20 + 5 * n, 144 if n % 3 else 240, 256 if n % 3 else 426) for n in range(9)]
    return DealtOrder(1, len(clips), by_size(clips, Buckets(config.bucket_config), 1), replicas)


def test_bucket_batches_have_one_shape_and_full_size() -> None:
    order = bucket_order()
    shapes = set()
    seen: set[tuple[int, int]] = set()
    for step in range(30):
        batch = order.batch(step)
        shapes.add(batch.shape)
        assert len(batch.samples) in (2, 4)
        for sample in batch.samples:
            assert (sample.epoch, sample.place) not in seen
            seen.add((sample.epoch, sample.place))
    assert len(shapes) >= 3


def test_bucket_order_resumes_anywhere() -> None:
    straight = bucket_order()
    expected = [straight.batch(step) for step in range(100)]
    positions = [bucket_order().position(step) for step in (0, 40)]
    assert bucket_order().batch(70) == expected[70]
    assert straight.batch(3) == expected[3]
    assert positions[0] == {"epoch": 0, "index": 0}
    assert positions[1]["epoch"] > 0


def test_buckets_that_keep_nothing_end_with_a_message() -> None:
    with pytest.raises(PayloadError, match="no clip was kept"):
        bucket_order(keep=0.0).batch(0)

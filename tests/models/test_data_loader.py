"""Batches: the same with and without threads, on one rank or several; clips that fail count for nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.config import TrainConfig
from models.data.batch import MicroBatch, SampleBuilder
from models.data.catalogue import Clip
from models.data.decode import read_header
from models.data.loader import Loader
from models.data.order import FixedOrder
from models.exits import PayloadError
from models.settings import fixed_shape
from tests.models.clips import damage, make_dataset

STEPS = 4


def config(**data: object) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "model": {"in_channels": 3, "caption_channels": 8, "model_max_length": 6, "class_dropout_prob": 0.5},
            "autoencoder": {"type": "identity"},
            "data": {"image_size": [16, 24], "num_frames": 4, "frame_interval": 2, **data},
            "mask_ratios": {"image_head": 0.5},
        }
    )


def clips(folder: Path) -> list[Clip]:
    return [
        Clip(path.name, path, read_header(path), folder / "text" / f"{path.stem}.npz")
        for path in sorted(folder.glob("*.mp4"))
    ]


def batches(
    folder: Path, settings: TrainConfig, *, rank: int = 0, ranks: int = 1, micro_steps: int = 1, start: int = 0
) -> list[MicroBatch]:
    shape = fixed_shape(settings.data)
    assert shape is not None
    loader = Loader(
        FixedOrder(settings.seed, len(clips(folder)), shape, 4),
        SampleBuilder(settings, clips(folder), lambda random, shape: float(random.random())),
        rank=rank,
        ranks=ranks,
        micro_steps=micro_steps,
        workers=settings.data.workers,
        prefetch=settings.data.prefetch,
        last_step=STEPS,
    )
    found = [batch for step in range(start, STEPS) for batch in loader.get(step).micro_batches]
    loader.close()
    return found


def assert_equal(left: list[MicroBatch], right: list[MicroBatch]) -> None:
    """The same samples in the same order, however they are cut into batches."""
    for name in ("x", "noise", "t", "y", "mask", "x_mask", "fps", "height", "width", "drop_ids", "weights"):
        one = np.concatenate([getattr(batch, name) for batch in left])
        two = np.concatenate([getattr(batch, name) for batch in right])
        assert one.dtype == two.dtype
        assert np.array_equal(one, two), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    make_dataset(path, 5)
    return path


def test_shapes_and_dtypes(folder: Path) -> None:
    batch = batches(folder, config())[0]
    assert batch.x.shape == batch.noise.shape == (4, 3, 4, 16, 24)
    assert batch.y.shape == (4, 1, 6, 8)
    assert batch.mask.shape == (4, 6)
    assert batch.mask[:, 4:].sum() == 0
    assert batch.x_mask is not None and batch.x_mask.shape == (4, 4)
    assert batch.x.dtype == batch.noise.dtype == batch.y.dtype == batch.t.dtype == np.float32
    assert -1 <= batch.x.min() < batch.x.max() <= 1
    assert (batch.fps == 12.5).all()
    assert (batch.weights == 1).all()


def test_threads_and_memory_change_nothing(folder: Path) -> None:
    alone = batches(folder, config(workers=0))
    assert_equal(alone, batches(folder, config(workers=3, prefetch=3)))
    assert_equal(alone, batches(folder, config(workers=2, cache=0)))


def test_start_in_the_middle_gives_the_same_samples(folder: Path) -> None:
    assert_equal(batches(folder, config())[2:], batches(folder, config(), start=2))


def test_ranks_and_micro_steps_share_one_global_batch(folder: Path) -> None:
    alone = batches(folder, config())
    two = [batches(folder, config(), rank=rank, ranks=2) for rank in range(2)]
    four = [batches(folder, config(), rank=rank, ranks=2, micro_steps=2) for rank in range(2)]
    for step in range(STEPS):
        assert_equal([alone[step]], [two[0][step], two[1][step]])
        assert_equal([alone[step]], [*four[0][2 * step : 2 * step + 2], *four[1][2 * step : 2 * step + 2]])


def test_windows_and_noise_differ_from_epoch_to_epoch(folder: Path) -> None:
    samples = np.concatenate([batch.x for batch in batches(folder, config())])
    noise = np.concatenate([batch.noise for batch in batches(folder, config())])
    assert len(np.unique(samples.reshape(len(samples), -1), axis=0)) > 8
    assert len(np.unique(noise.reshape(len(noise), -1), axis=0)) == len(noise)


def test_a_clip_that_fails_to_decode_weighs_nothing(tmp_path: Path) -> None:
    make_dataset(tmp_path, 2, frames=24)
    damage(tmp_path / "clip1.mp4")
    found = batches(tmp_path, config())
    failures = [failure for batch in found for failure in batch.failures]
    assert failures and all(failure.clip.name == "clip1.mp4" and failure.reason for failure in failures)
    weights = np.concatenate([batch.weights for batch in found])
    x = np.concatenate([batch.x for batch in found])
    assert len(failures) == (weights == 0).sum()
    assert (x[weights == 0] == 0).all()
    assert (np.abs(x[weights == 1]).max(axis=(1, 2, 3, 4)) > 0).all()


def test_an_embedding_lost_in_between_ends_the_run(tmp_path: Path) -> None:
    make_dataset(tmp_path, 2)
    np.savez(tmp_path / "text" / "clip1.npz", text_emb=np.full((4, 8), np.nan, np.float32), mask=np.ones(4, np.uint8))
    with pytest.raises(PayloadError, match="cannot be used") as caught:
        batches(tmp_path, config())
    assert "not finite" in caught.value.why

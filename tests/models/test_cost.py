"""The lower bound on memory, against counts of the original's weights and figures worked out by hand."""

from __future__ import annotations

import pytest

from models.config import AutoencoderConfig, LayoutConfig, ModelConfig, TrainConfig
from models.cost import checkpoint_bytes, count_parameters, latent_size, tokens, training_memory

# Elements of the weights of the golden cases 03_stdit3_v1_2 and 03b_stdit3_options (buffers left out).
SMALL = ModelConfig(hidden_size=64, depth=2, num_heads=4, caption_channels=32)
OPTIONS = ModelConfig(
    hidden_size=48, depth=1, num_heads=4, caption_channels=32, patch_size=(2, 2, 2), pred_sigma=False, qk_norm=False
)


def test_parameters_are_those_of_the_original() -> None:
    assert count_parameters(SMALL).total == 342_880
    assert count_parameters(OPTIONS).total == 126_224
    assert count_parameters(ModelConfig()).total == 1_207_643_936


def test_frozen_parts_do_not_train() -> None:
    full = count_parameters(SMALL)
    frozen = count_parameters(SMALL.model_copy(update={"freeze_y_embedder": True}))
    assert full.trained == full.total == frozen.total
    assert full.trained - frozen.trained == 32 * 64 + 64 + 64 * 64 + 64
    temporal = count_parameters(SMALL.model_copy(update={"only_train_temporal": True}))
    assert 0 < temporal.trained < full.total / 2


@pytest.mark.parametrize(
    ("frames", "latent_frames"), [(1, 1), (4, 1), (5, 2), (17, 5), (51, 15), (68, 20), (102, 30), (18, 6), (408, 120)]
)
def test_latent_frames_of_the_video_autoencoder(frames: int, latent_frames: int) -> None:
    assert latent_size(AutoencoderConfig(), frames, 720, 1280) == (latent_frames, 90, 160)
    assert latent_size(AutoencoderConfig(type="identity"), frames, 24, 32) == (frames, 24, 32)


def test_tokens_are_padded_patches() -> None:
    assert tokens(TrainConfig(), 51, 720, 1280) == 15 * 45 * 80
    assert tokens(TrainConfig(), 51, 360, 640) == 15 * 23 * 40  # 45 latent rows: the last one is padded


def test_states_by_zero_stage_follow_the_paper() -> None:
    def parts(zero: int, world: int = 4, dtype: str = "bf16") -> tuple[int, ...]:
        config = TrainConfig(model=SMALL, dtype=dtype, layout=LayoutConfig(zero=zero))  # type: ignore[arg-type]
        memory = training_memory(config, 10, world)
        return memory.weights, memory.gradients, memory.optimizer, memory.ema

    n = 342_880
    assert parts(0) == (2 * n, 2 * n, 12 * n, 4 * n)
    assert parts(1) == (2 * n, 2 * n, 3 * n, n)
    assert parts(2) == (2 * n, n // 2, 3 * n, n)
    assert parts(3) == (n // 2, n // 2, 3 * n, n)
    assert parts(0, dtype="fp32") == (4 * n, 4 * n, 8 * n, 4 * n)


def test_activations_with_and_without_recomputation() -> None:
    element = 10 * 64 * 2
    with_it = training_memory(TrainConfig(model=SMALL), 10, 1).per_sample
    without = training_memory(TrainConfig(model=SMALL, recompute=False), 10, 1).per_sample
    assert with_it == 4 * element + 19 * element and without == 4 * 19 * element
    shared = training_memory(TrainConfig(model=SMALL, layout=LayoutConfig(sp=2)), 10, 2).per_sample
    assert shared == with_it // 2


def test_largest_batch_is_the_largest() -> None:
    memory = training_memory(TrainConfig(model=SMALL), 1000, 1)
    limit = memory.states + 5 * memory.per_sample + memory.per_sample // 2
    assert memory.largest_batch(limit) == 5
    assert memory.total(5) <= limit < memory.total(6)
    assert memory.largest_batch(memory.states - 1) == 0


def test_checkpoint_bytes() -> None:
    assert checkpoint_bytes(TrainConfig(model=SMALL)) == 16 * 342_880
    assert checkpoint_bytes(TrainConfig(model=SMALL, ema_decay=None)) == 12 * 342_880

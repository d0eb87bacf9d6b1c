"""Traffic by formula: the shares that the documents promise."""

from __future__ import annotations

import pytest

from models.config import LayoutConfig, ModelConfig, TrainConfig
from models.parallel.theory import Tokens, peak_memory, step_traffic
from models.parallel.traffic import Traffic, sent

# STDiT3-XL/2 at 408 frames: 120 latent frames, patches of 2 x 2 latents of 8 x 8 pixels.
SIZES = {"144p": 9 * 16, "240p": 15 * 27, "360p": 23 * 40, "480p": 30 * 54, "720p": 45 * 80}


def traffic(kind: str, sp: int, spatial: int, recompute: bool = True) -> dict[str, tuple[int, int]]:
    config = TrainConfig(model=ModelConfig(), layout=LayoutConfig(sp=sp, sp_kind=kind), recompute=recompute)
    return step_traffic(config, sp, [1000], Tokens(1, 120, spatial))


@pytest.mark.parametrize("sp", [2, 4, 8])
@pytest.mark.parametrize("size", SIZES)
def test_dsp_moves_a_third_of_ulysses_at_408_frames(sp: int, size: str) -> None:
    ulysses, dsp = (traffic(kind, sp, SIZES[size])["all_to_all"] for kind in ("ulysses", "dsp"))
    assert 0 < 3 * dsp[1] <= ulysses[1]
    assert dsp[0] < ulysses[0]


def test_recomputation_sends_again() -> None:
    with_, without = (traffic("dsp", 4, 3600, again)["all_to_all"] for again in (True, False))
    assert 2 * with_[1] == 3 * without[1]


def test_one_rank_sends_nothing() -> None:
    assert step_traffic(TrainConfig(), 1, [10], Tokens(1, 2, 3)) == {}


def test_zero_moves_what_data_parallel_moves_and_stage_3_half_as_much_again() -> None:
    def total(zero: int) -> int:
        config = TrainConfig(layout=LayoutConfig(zero=zero), dtype="fp32")
        return sum(size for _, size in step_traffic(config, 4, [4000] * 50, Tokens(1, 1, 1)).values())

    assert total(1) == total(2) == pytest.approx(total(0), rel=1e-3)
    assert total(3) == pytest.approx(1.5 * total(0), rel=0.02)


def test_bytes_of_collectives() -> None:
    assert sent("all_reduce", 10, 4, 4) == 2 * 3 * 3 * 4
    assert sent("all_gather", 10, 4, 4) == 3 * 10 * 4
    assert sent("reduce_scatter", 12, 2, 4) == 3 * 3 * 2
    assert sent("all_to_all", 12, 4, 3) == 2 * 4 * 4
    traffic = Traffic()
    traffic.add("all_gather", 10, 4, 2)
    traffic.add("all_gather", 10, 4, 2)
    assert traffic.take() == {"all_gather": (2, 80)}
    assert traffic.take() == {}


def test_memory_falls_with_every_stage() -> None:
    peaks = [peak_memory([1000] * 20, 4, zero, averages=True).total for zero in range(4)]
    assert peaks[0] > peaks[1] == peaks[2] > peaks[3]
    # Weights, two moments and averages: 4 bytes each, all of them shared by 4 ranks.
    assert peak_memory([1000], 4, 3, averages=True).states == 4 * 4 * 250

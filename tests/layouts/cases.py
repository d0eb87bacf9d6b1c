"""What is compared: a small STDiT3 on shapes that need padding, and the layouts it is trained under."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from models.config import TrainConfig
from models.data.batch import MicroBatch
from models.data.order import slots
from models.rng import stream

STEPS = 10
# 12 samples: divisible by 4 ranks x 3 micro steps.
GLOBAL_BATCH = 12
# Latents of 3 channels, 5 frames, 10 x 6: patches 5 x (5 x 3) = 5 frames of 15 tokens, divisible by neither 2 nor 4.
SIZE = (3, 5, 10, 6)
TEXT = (7, 12)


@dataclass(frozen=True)
class Case:
    """One way to train: a layout, recomputation, micro steps; and what is trained, under which process."""

    sp: int = 1
    sp_kind: str = "ulysses"
    zero: int = 0
    recompute: int = 0
    accumulation: int = 1
    jit: str = "off"
    dtype: str = "fp32"
    offload: bool = False
    model: str = "STDiT3"
    process: str = "rflow"

    def name(self, world: int) -> str:
        kind = f"-{self.sp_kind}{self.sp}" if self.sp > 1 else ""
        again = f"-recompute{self.recompute}" if self.recompute else ""
        rest = ("-jit" if self.jit == "on" else "") + ("-offload" if self.offload else "")
        rest += "" if self.dtype == "fp32" else f"-{self.dtype}"
        rest += "" if self.model == "STDiT3" else f"-{self.model}"
        return f"dp{world // self.sp}{kind}-zero{self.zero}{again}-x{self.accumulation}{rest}"


ZERO = tuple(Case(zero=zero) for zero in range(4))
BOTH_KINDS = ("ulysses", "dsp")


def layouts(world: int) -> list[Case]:
    """Every layout of ``world`` ranks: data parallel under each ZeRO stage, each kind of SP, and both together."""
    whole = [Case(sp=world, sp_kind=kind) for kind in BOTH_KINDS]
    if world < 4:
        return [*ZERO, *whole]
    return [*ZERO, *whole, *(Case(sp=2, sp_kind=kind, zero=zero) for kind in BOTH_KINDS for zero in range(4))]


# Recomputation of all blocks or none, micro steps.
WAYS = ((0, 1), (1, 1), (0, 3), (1, 3))


def config(case: Case, **changes: Any) -> TrainConfig:
    """A training configuration of the case; ``changes`` replace whole sections or values."""
    values: dict[str, Any] = {
        "model": {
            "type": case.model, "in_channels": SIZE[0], "hidden_size": 32 if case.model == "STDiT3" else 24,
            "depth": 2, "num_heads": 4, "patch_size": [1, 2, 2],
            "caption_channels": TEXT[1], "model_max_length": TEXT[0], "class_dropout_prob": 0.2,
        },
        "autoencoder": {"type": "identity"},
        # At eps 1e-8 Adam turns rounding noise of gradients that are zero into whole steps.
        "optimizer": {
            "lr": 1e-3, "eps": 1e-5, "weight_decay": 0.01, "max_grad_norm": 0.5, "offload": case.offload,
        },
        # Low enough that half precision does not overflow.
        "loss_scale": {"initial": 16.0},
        "ema_decay": 0.9,
        "mask_ratios": None if case.model == "STDiT" else {"random": 0.5},
        "data": {"image_size": SIZE[2:], "num_frames": SIZE[1]},
        "diffusion": {"type": case.process},
        "layout": {"sp": case.sp, "sp_kind": case.sp_kind, "zero": case.zero, "unit_size": 15000},
        "recompute": case.recompute if case.recompute > 1 else bool(case.recompute),
        "gradient_accumulation_steps": case.accumulation,
        "batch_size": GLOBAL_BATCH,
        "jit": case.jit,
        "dtype": case.dtype,
        "seed": 7,
    }  # fmt: skip
    return TrainConfig(**(values | changes))


def micro_batches(step: int, rank: int, ranks: int, accumulation: int) -> list[MicroBatch]:
    """A data-parallel rank's part of the global batch of a step: every sample is a function of step and slot."""
    parts = slots(GLOBAL_BATCH, rank, ranks, accumulation)
    return [batch_of([sample(step, slot, SIZE) for slot in part], SIZE) for part in parts]


def sample(step: int, slot: int, size: tuple[int, ...]) -> dict[str, Any]:
    draw = stream(11, "sample", step, slot)
    frames = size[1]
    frame_mask = draw.random(frames) < 0.7
    frame_mask[int(draw.integers(frames))] = True
    text = np.zeros(TEXT[0], np.int32)
    text[: int(draw.integers(1, TEXT[0] + 1))] = 1
    return {
        "x": draw.standard_normal(size, np.float32),
        "noise": draw.standard_normal(size, np.float32),
        "t": float(draw.random() * 1000),
        "y": draw.standard_normal(TEXT, np.float32),
        "mask": text,
        "x_mask": frame_mask,
        "drop": draw.random() < 0.2,
        # One sample in nine is a clip that could not be decoded.
        "weight": float(draw.random() > 1 / 9),
    }


def batch_of(samples: list[dict[str, Any]], size: tuple[int, ...]) -> MicroBatch:
    def stacked(name: str, dtype: Any) -> np.ndarray:
        return np.stack([np.asarray(sample[name], dtype) for sample in samples])

    count = len(samples)
    return MicroBatch(
        x=stacked("x", np.float32), t=stacked("t", np.float32), noise=stacked("noise", np.float32),
        y=stacked("y", np.float32)[:, None], mask=stacked("mask", np.int32), x_mask=stacked("x_mask", bool),
        fps=np.full(count, 24, np.float32), height=np.full(count, 8.0 * size[2], np.float32),
        width=np.full(count, 8.0 * size[3], np.float32),
        num_frames=np.full(count, size[1], np.float32), drop_ids=stacked("drop", np.int32),
        weights=stacked("weight", np.float32), failures=(),
    )  # fmt: skip

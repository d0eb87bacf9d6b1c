"""Learning rates by step: linear warm-up, then constant or half-cosine decay."""

from __future__ import annotations

import math

from models.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Learning rate of optimizer step ``step`` (from 0).

    Warm-up: (step + 1) / (warmup_steps + 1) of ``lr``, so the first step is never zero and the step after the warm-up
    has the full rate (upstream: opensora/utils/lr_scheduler.py). Cosine: from ``lr`` right after the warm-up to
    ``end_lr`` at the last of ``decay_steps`` (default: all remaining steps), constant from there.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / (config.warmup_steps + 1)
    if config.schedule == "constant":
        return config.lr
    span = config.decay_steps or max(total_steps - config.warmup_steps, 1)
    progress = min((step - config.warmup_steps) / max(span - 1, 1), 1.0)
    return config.end_lr + (config.lr - config.end_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))

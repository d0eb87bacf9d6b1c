"""Optimizer, learning-rate schedule, gradient clipping, moving average of weights."""

from models.optim.adamw import AdamW
from models.optim.clipping import clip, global_norm
from models.optim.ema import EMA
from models.optim.schedule import learning_rate

__all__ = ["EMA", "AdamW", "clip", "global_norm", "learning_rate"]

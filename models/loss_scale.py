"""Loss scaling for float16 (Micikevicius et al. 2018). What it decides is the same on every rank."""

from __future__ import annotations

from models.config import LossScaleConfig


class LossScale:
    """``value``: factor of the loss. Lower after a step whose gradients overflowed, higher after a row of good ones."""

    def __init__(self, config: LossScaleConfig, dtype: str) -> None:
        self._config, self._used = config, dtype == "fp16"
        self.value = float(config.initial) if self._used else 1.0
        self.good_steps = 0

    def update(self, finite: bool) -> None:
        """After every step; ``finite``: whether the gradients over all ranks were."""
        if not self._used or self._config.type == "static":
            return
        if not finite:
            self.value = max(self.value / self._config.factor, 1.0)
            self.good_steps = 0
            return
        self.good_steps += 1
        if self.good_steps == self._config.window:
            self.value *= self._config.factor
            self.good_steps = 0

    def state(self) -> dict[str, float]:
        return {"value": self.value, "good_steps": self.good_steps}

    def restore(self, state: dict[str, float]) -> None:
        if self._used:
            self.value, self.good_steps = float(state["value"]), int(state["good_steps"])

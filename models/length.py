"""How long a training lasts: optimizer steps, or passes over the data."""

from __future__ import annotations

import sys
from typing import Protocol

from models.config import CheckpointConfig
from models.data.order import Order

# Where nobody can say before: buckets deal every epoch anew.
UNKNOWN = sys.maxsize


class _Bounds(Protocol):
    @property
    def steps(self) -> int | None: ...
    @property
    def epochs(self) -> int | None: ...
    @property
    def checkpoint(self) -> CheckpointConfig: ...


class Length:
    """The end of a training, and when checkpoints are due on the way there.

    total: steps of the whole training; None where only the data will tell (epochs of buckets).
    """

    def __init__(self, config: _Bounds, order: Order) -> None:
        self._order, self._epochs, self._checkpoint = order, config.epochs, config.checkpoint
        self.total = config.steps if config.epochs is None else order.steps_in(config.epochs)

    @property
    def bound(self) -> int:
        """No step beyond this one is trained."""
        return UNKNOWN if self.total is None else self.total

    def reached(self, step: int) -> bool:
        """Whether training is over when ``step`` steps are done."""
        if self.total is not None:
            return step >= self.total
        assert self._epochs is not None
        return self._order.position(step)["epoch"] >= self._epochs

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due after ``step`` steps; one always is at the end."""
        if self._checkpoint.every_epochs is None:
            due = step % self._checkpoint.every == 0
        else:
            passed = [self._order.position(done)["epoch"] // self._checkpoint.every_epochs for done in (step - 1, step)]
            due = passed[0] != passed[1]
        return due or self.reached(step)

    def __str__(self) -> str:
        if self._epochs is None:
            return f"{self.total} steps"
        return f"{self._epochs} epochs" + (f" of {self.total} steps together" if self.total is not None else "")

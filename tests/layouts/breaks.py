"""Deliberate mistakes, one at a time: each must make the comparison fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

BREAKS = (
    "backward_scaled",
    "local_norm",
    "shared_randomness",
    "padding_seen",
    "samples_counted_by_all",
)


def apply_break(name: str | None) -> Callable[[], None]:
    """Makes the mistake ``name``; the result undoes it."""
    if name is None:
        return lambda: None
    from models.parallel import exchange, sequence
    from models.step import TrainStep
    from models.update import Update
    from tests.layouts import cases

    def replaced(owner: Any, attribute: str, value: Any) -> Callable[[], None]:
        original = getattr(owner, attribute)
        setattr(owner, attribute, value)
        return lambda: setattr(owner, attribute, original)

    if name == "backward_scaled":  # an exchange whose gradient is divided by the group, as an average would be
        honest = exchange.Exchange.bprop

        def scaled(self: Any, x: Any, out: Any, dout: Any) -> tuple[Any]:
            return (honest(self, x, out, dout)[0] / self.group.size,)

        return replaced(exchange.Exchange, "bprop", scaled)
    if name == "local_norm":  # clipping by the norm of the own shard

        def squares(self: Any) -> float:
            flat = [gradient.asnumpy().astype(np.float64) for unit in self._gradients for gradient in unit]
            return float(sum((values * values).sum() for values in flat))

        return replaced(Update, "squares", squares)
    if name == "shared_randomness":  # every data-parallel rank draws what the first one draws
        honest_batches = cases.micro_batches
        return replaced(
            cases,
            "micro_batches",
            lambda step, rank, ranks, accumulation: honest_batches(step, 0, ranks, accumulation),
        )
    if name == "padding_seen":  # tokens of padding stay where attention sees them
        return replaced(sequence.Ulysses, "sequence_to_heads", lambda self, qkv: self._in_qkv(qkv))
    assert name == "samples_counted_by_all"  # every rank of a sequence-parallel group counts its samples
    honest_apply = TrainStep.apply

    def applied(self: Any, weighted_loss: float, weight: float, lr: float) -> Any:
        return honest_apply(self, weighted_loss, weight * self.mesh.sp, lr)

    return replaced(TrainStep, "apply", applied)

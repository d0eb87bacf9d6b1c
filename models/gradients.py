"""Gradients of a micro batch: compiled as one graph, or eagerly, layer by layer.

Compiled: fast where samples have one shape; gradients of the whole model exist at once. Eager: any shape, sequence
parallelism, gradients that leave during the backward pass (ZeRO 2) and weights that come and go (ZeRO 3).
Both give the gradients of the weighted sum of losses, one flat float32 vector a unit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor
from mindspore import ops as P

from models.data.batch import MicroBatch
from models.diffusion import Process
from models.parallel.recompute import recompute
from models.parallel.sources import Weights, attach
from models.parallel.units import Unit

# Takes the number of a unit and its flat gradient, summed over this rank's micro steps.
Reduce = Callable[[int, Tensor], None]


class Gradients(Protocol):
    def run(self, batch: MicroBatch, scale: float, reduce: Reduce | None) -> np.ndarray:
        """Adds a micro batch; ``reduce``, given for the last one, gets every unit's sum. float32 [2]: loss, weight.

        scale: factor of the loss for the backward pass. The loss returned is the weighted sum, without it.
        """


class CompiledGradients:
    """Forward and backward pass as one graph (``ms.jit``), or the same functions eagerly."""

    def __init__(self, model: Any, flow: Process, params: dict[str, Parameter], units: list[Unit], blocks: int) -> None:
        """blocks: every how many blocks one is recomputed, 0 none."""
        if blocks:
            for cell in model.blocks_in_order()[blocks - 1 :: blocks]:
                cell.recompute()
        self._run = ms.jit(_flat_gradients(model, flow, params, units))
        self._sums: list[Tensor] | None = None

    def run(self, batch: MicroBatch, scale: float, reduce: Reduce | None) -> np.ndarray:
        flats, numbers = self._run(*_inputs(batch, scale))
        sums = flats if self._sums is None else [held + new for held, new in zip(self._sums, flats, strict=True)]
        self._sums = None if reduce is not None else list(sums)
        if reduce is not None:
            for number in reversed(range(len(sums))):
                reduce(number, sums[number])
        return _unscaled(numbers, scale)


class EagerGradients:
    """Layers take weights from, and give gradients to, :class:`models.parallel.sources.Weights`."""

    def __init__(self, model: Any, flow: Process, weights: Weights, blocks: int) -> None:
        attach(model, weights)
        recompute(model, blocks, weights.anchor)
        self.weights = weights
        loss = process_loss(model, flow)

        def weighted(*inputs: Tensor) -> tuple[Tensor, Tensor]:
            total = (loss(*inputs[:-1]) * inputs[-1]).sum()
            return total, inputs[-1].sum()

        self._run = ms.value_and_grad(weighted, None, ParameterTuple([weights.anchor]), has_aux=True)

    def run(self, batch: MicroBatch, scale: float, reduce: Reduce | None) -> np.ndarray:
        self.weights.expect(reduce)
        (loss, weight), _ = self._run(*_inputs(batch, scale))
        if reduce is not None:
            self.weights.finish()
        return _unscaled(P.concat([loss.reshape(1), weight.reshape(1)]), scale)


def process_loss(model: Any, flow: Process) -> Callable[..., Tensor]:
    """The loss of samples, float32 [B]; where ranks share a sample's tokens, this rank's part of it."""
    loss = flow.loss if model.sequence is None else flow.token_loss
    return lambda *inputs: loss(model, *inputs)


def summed_loss(model: Any, flow: Process, batch: MicroBatch) -> np.ndarray:
    """float32 [2]: weighted sum of losses, sum of weights. No gradients."""
    inputs = _inputs(batch, 1.0)
    losses = process_loss(model, flow)(*inputs[:-1])
    total = (losses * inputs[-1]).sum()
    return np.array([float(total.astype(ms.float32).asnumpy()), float(batch.weights.sum())], np.float32)


def _flat_gradients(
    model: Any, flow: Process, params: dict[str, Parameter], units: list[Unit]
) -> Callable[..., tuple[tuple[Tensor, ...], Tensor]]:
    """Batch -> (flat gradients, one a unit; [weighted sum of losses, sum of weights])."""
    ordered = [params[name] for unit in units for name in unit.names]
    starts = [sum(len(unit.names) for unit in units[:number]) for number in range(len(units) + 1)]
    spare = [unit.padded - unit.length for unit in units]

    def weighted_loss(
        x: Tensor, t: Tensor, noise: Tensor, y: Tensor, mask: Tensor, x_mask: Tensor | None, fps: Tensor,
        height: Tensor, width: Tensor, num_frames: Tensor, ar: Tensor, drop_ids: Tensor, weights: Tensor,
    ) -> Tensor:  # fmt: skip
        losses = flow.loss(model, x, t, noise, y, mask, x_mask, fps, height, width, num_frames, ar, drop_ids)
        return (losses * weights).sum()

    with_gradients = ms.value_and_grad(weighted_loss, None, ParameterTuple(ordered))

    def gradients(
        x: Tensor, t: Tensor, noise: Tensor, y: Tensor, mask: Tensor, x_mask: Tensor | None, fps: Tensor,
        height: Tensor, width: Tensor, num_frames: Tensor, ar: Tensor, drop_ids: Tensor, weights: Tensor,
    ) -> tuple[tuple[Tensor, ...], Tensor]:  # fmt: skip
        loss, grads = with_gradients(
            x, t, noise, y, mask, x_mask, fps, height, width, num_frames, ar, drop_ids, weights
        )
        flats = []
        for number in range(len(spare)):
            parts = [grads[i].reshape(-1).astype(ms.float32) for i in range(starts[number], starts[number + 1])]
            if spare[number] > 0:
                parts.append(P.zeros((spare[number],), ms.float32))
            flats.append(P.concat(parts))
        return tuple(flats), P.concat([loss.reshape(1), weights.sum().reshape(1)])

    return gradients


def _inputs(batch: MicroBatch, scale: float) -> tuple[Any, ...]:
    arrays = (batch.x, batch.t, batch.noise, batch.y, batch.mask, batch.x_mask)
    arrays += (batch.fps, batch.height, batch.width, batch.num_frames, batch.ar)
    arrays += (batch.drop_ids, batch.weights * np.float32(scale))
    return tuple(None if array is None else Tensor(array) for array in arrays)


def _unscaled(numbers: Tensor, scale: float) -> np.ndarray:
    values: np.ndarray = numbers.astype(ms.float32).asnumpy() / np.float32(scale)
    return values

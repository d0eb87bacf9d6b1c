"""One optimizer step: gradients of the micro batches, their sum over ranks, clipping, AdamW, moving average.

Every sample's loss is summed with its weight (0 for a sample whose clip did not decode) and divided by the weights of
the whole global batch, so a step is the same however the batch is spread over ranks and micro steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor
from mindspore import ops as P

from models.config import TrainConfig
from models.data.batch import MicroBatch
from models.diffusion.rflow import RFlow
from models.optim import EMA, AdamW, clip, global_norm
from models.parallel.world import World
from models.stdit import build_model

# Gradients travel together up to this many elements (64 MB of float32).
BUCKET_ELEMENTS = 16 << 20


@dataclass(frozen=True)
class StepResult:
    """loss and grad_norm (before clipping) of the global batch; weight: samples that counted, over all ranks.

    ``applied`` is False when loss or gradients were not finite, or no sample counted: nothing was changed then.
    """

    loss: float
    grad_norm: float
    weight: float
    applied: bool


class TrainStep:
    """The model, its optimizer and its moving average, and the step that changes them."""

    def __init__(self, config: TrainConfig, world: World, *, fixed_shape: bool) -> None:
        self.config, self.world = config, world
        # The CPU has hardly any bfloat16 kernels: it trains in float32 whatever the recipe says.
        self.dtype = config.dtype if world.device == "Ascend" else "fp32"
        self.model = build_model(config.model, config.seed, dtype=self.dtype)
        self.model.set_train(True)
        self.params = [param for param in self.model.get_parameters() if param.requires_grad]
        self.optimizer = AdamW(self.params, config.optimizer)
        self.ema = EMA(self.params, config.ema_decay) if config.ema_decay is not None else None
        self.flow = RFlow(config.diffusion)
        self.compiled = config.jit == "on" or (config.jit == "auto" and fixed_shape)
        parts = _parts([param.size for param in self.params])
        compile_ = ms.jit if self.compiled else _as_it_is
        self._gradients = compile_(_gradient_function(self.model, self.flow, self.params, parts))
        self._update = compile_(_update_function(self.optimizer, self.ema, config.optimizer.max_grad_norm, parts))

    def run(self, batches: Sequence[MicroBatch], lr: float) -> StepResult:
        """Trains on this rank's micro batches; a collective call: every rank makes it."""
        total: list[Tensor] | None = None
        for batch in batches:
            buckets, numbers = self._gradients(*_inputs(batch))
            part = [*buckets, numbers]
            total = part if total is None else [mine + more for mine, more in zip(total, part, strict=True)]
        assert total is not None
        *buckets, numbers = self.world.sum_tensors(total)
        weighted_loss, weight = (float(value) for value in numbers.asnumpy())
        if weight == 0:
            return StepResult(float("nan"), float("nan"), 0.0, False)
        scale = Tensor(np.float32(1.0 / weight))
        buckets = [bucket * scale for bucket in buckets]
        norm = global_norm(buckets)
        loss, grad_norm = weighted_loss / weight, float(norm.asnumpy())
        applied = bool(np.isfinite(loss) and np.isfinite(grad_norm))
        if applied:
            self._update(norm, self.optimizer.advance(lr), *buckets)
        return StepResult(loss, grad_norm, weight, applied)

    def tokens(self, frames: int, height: int, width: int) -> int:
        """Patches of one sample."""
        return int(np.prod(self.model.token_grid(frames, height, width)))


def _as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _parts(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Ranges of parameters whose gradients travel as one flat tensor: few collectives, bounded extra memory."""
    parts: list[tuple[int, int]] = []
    room = 0
    for index, size in enumerate(sizes):
        if not parts or size > room:
            parts.append((index, index))
            room = max(BUCKET_ELEMENTS, size)
        parts[-1] = (parts[-1][0], index + 1)
        room -= size
    return parts


def _gradient_function(
    model: Any, flow: RFlow, params: list[Any], parts: list[tuple[int, int]]
) -> Callable[..., tuple[tuple[Tensor, ...], Tensor]]:
    """Batch -> (flat gradients of the weighted sum of losses, one tensor a part; [that sum, sum of weights])."""

    def weighted_loss(
        x: Tensor,
        t: Tensor,
        noise: Tensor,
        y: Tensor,
        mask: Tensor,
        x_mask: Tensor | None,
        fps: Tensor,
        height: Tensor,
        width: Tensor,
        drop_ids: Tensor,
        weights: Tensor,
    ) -> Tensor:
        losses = flow.loss(model, x, t, noise, y, mask, x_mask, fps, height, width, drop_ids)
        return (losses * weights).sum()

    with_gradients = ms.value_and_grad(weighted_loss, None, ms.ParameterTuple(params))

    def gradients(
        x: Tensor,
        t: Tensor,
        noise: Tensor,
        y: Tensor,
        mask: Tensor,
        x_mask: Tensor | None,
        fps: Tensor,
        height: Tensor,
        width: Tensor,
        drop_ids: Tensor,
        weights: Tensor,
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        loss, grads = with_gradients(x, t, noise, y, mask, x_mask, fps, height, width, drop_ids, weights)
        flat = tuple([P.concat([grads[i].reshape(-1) for i in range(start, stop)]) for start, stop in parts])
        return flat, P.concat([loss.reshape(1), weights.sum().reshape(1)])

    return gradients


def _update_function(
    optimizer: AdamW, ema: EMA | None, max_norm: float | None, parts: list[tuple[int, int]]
) -> Callable[..., bool]:
    """(gradient norm, factors of the optimizer, flat averaged gradients) -> clipped update of weights and averages."""
    shapes = [tuple(param.shape) for param in optimizer.params]
    sizes = [int(param.size) for param in optimizer.params]

    # Tensors one by one: tensors inside a tuple count as constants, and every step would be compiled anew.
    def update(norm: Tensor, hyper: Tensor, *buckets: Tensor) -> bool:
        if max_norm is not None:
            buckets = clip(buckets, norm, max_norm)
        gradients = []
        # The graph compiler knows no keywords of zip().
        for number in range(len(parts)):
            offset = 0
            for index in range(parts[number][0], parts[number][1]):
                gradients.append(buckets[number][offset : offset + sizes[index]].reshape(shapes[index]))
                offset += sizes[index]
        optimizer(tuple(gradients), hyper)
        if ema is not None:
            ema()
        return True

    return update


def _inputs(batch: MicroBatch) -> tuple[Any, ...]:
    arrays = (batch.x, batch.t, batch.noise, batch.y, batch.mask, batch.x_mask)
    arrays += (batch.fps, batch.height, batch.width, batch.drop_ids, batch.weights)
    return tuple(None if array is None else Tensor(array) for array in arrays)

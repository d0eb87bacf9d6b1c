"""One optimizer step: gradients of the micro batches, their sum over ranks, and the update.

Every sample's loss is summed with its weight (0 for a sample whose clip did not decode) and divided by the weights of
the whole global batch, so a step is the same however the batch is spread over ranks and micro steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from mindspore import Parameter, Tensor

from models.checkpoint.pieces import Piece
from models.config import TrainConfig
from models.data.batch import MicroBatch
from models.diffusion.rflow import RFlow
from models.gradients import CompiledGradients, EagerGradients, Gradients, Reduce
from models.layers.linear import as_dtype
from models.loss_scale import LossScale
from models.parallel.mesh import Mesh
from models.parallel.sequence import divide
from models.parallel.sources import Weights
from models.parallel.units import host, make_units
from models.stdit import build_model
from models.update import Update, own_share, saved_kinds

Read = Callable[[list[tuple[str, str, int, int]]], Iterator[np.ndarray]]


@dataclass(frozen=True)
class StepResult:
    """loss and grad_norm (before clipping) of the global batch; weight: samples that counted, over all ranks.

    ``applied`` is False when loss or gradients were not finite, or no sample counted: nothing was changed then.
    progress: sum over ranks of what each gave to :meth:`TrainStep.run`. comm: calls and bytes by collective, this rank.
    """

    loss: float
    grad_norm: float
    weight: float
    applied: bool
    progress: float = 0.0
    comm: dict[str, tuple[int, int]] = field(default_factory=dict)


class TrainStep:
    """The model, its optimizer and its moving average, and the step that changes them.

    Weights may be set until :meth:`prepare`, which hands them to the optimizer (and shards them).
    """

    def __init__(self, config: TrainConfig, mesh: Mesh, *, fixed_shape: bool, dtype: str | None = None) -> None:
        self.config, self.mesh = config, mesh
        # The CPU has hardly any bfloat16 kernels: it trains in float32 whatever the recipe says.
        self.dtype = dtype or (config.dtype if mesh.world.device == "Ascend" else "fp32")
        self.model = build_model(config.model, config.seed, dtype=self.dtype)
        self.model.set_train(True)
        divide(self.model, mesh)
        self.flow = RFlow(config.diffusion)
        self.scale = LossScale(config.loss_scale, self.dtype)
        wanted = config.jit == "on" or (config.jit == "auto" and fixed_shape)
        self.compiled = wanted and mesh.sp == 1 and not (config.layout.zero == 3 and mesh.size > 1)
        self.shapes = {name: tuple(param.shape) for name, param in self.model.parameters_and_names()}
        trainable = {name: param for name, param in self.model.parameters_and_names() if param.requires_grad}
        shapes = {name: self.shapes[name] for name in trainable}
        units = make_units(shapes, self.model.stages(), mesh.size, config.layout.unit_size)
        self.weights = Weights(trainable, units, mesh, as_dtype(self.dtype))
        self.compile_seconds: float | None = None

    def prepare(self) -> None:
        """Starts the optimizer with the model's weights as they are. Under ZeRO 3 the whole ones are given up."""
        blocks = int(self.config.recompute)
        self._gradients: Gradients
        if self.compiled:
            arguments = (self.model, self.flow, self.weights.params, self.weights.units)
            self._gradients = CompiledGradients(*arguments, blocks)
        else:
            self._gradients = EagerGradients(self.model, self.flow, self.weights, blocks)
        self.update = Update(self.weights, self.mesh, self.config, self.compiled)

    def run(self, batches: Sequence[MicroBatch], lr: float, progress: float = 0.0) -> StepResult:
        """Trains on this rank's micro batches; a collective call: every rank makes it."""
        numbers = np.zeros(2, np.float32)
        for place, batch in enumerate(batches):
            last = place == len(batches) - 1
            numbers += self._micro_step(self._agreed(batch), self.update.reduce if last else None)
        if self.mesh.sp_rank != 0:
            numbers[1] = 0  # its samples are those of the group's first rank, who counts them
        told = Tensor(np.array([*numbers, progress], np.float32))
        weighted_loss, weight, told_progress = (float(v) for v in self.mesh.everyone.all_reduce(told).asnumpy())
        result = self._apply(weighted_loss, weight, lr)
        return replace(result, progress=told_progress, comm=self.mesh.traffic.take())

    def _micro_step(self, batch: MicroBatch, reduce: Reduce | None) -> np.ndarray:
        start = time.perf_counter()
        numbers = self._gradients.run(batch, self.scale.value, reduce)
        if self.compiled and self.compile_seconds is None:
            self.compile_seconds = time.perf_counter() - start
        return numbers

    def _agreed(self, batch: MicroBatch) -> MicroBatch:
        """A sample counts only where all ranks that share it could decode it."""
        if self.mesh.sp == 1:
            return batch
        counts = self.mesh.sp_group.all_reduce(Tensor(batch.weights)).asnumpy()
        return replace(batch, weights=(counts == self.mesh.sp).astype(np.float32))

    def _apply(self, weighted_loss: float, weight: float, lr: float) -> StepResult:
        if weight == 0:
            self.update.drop_gradients()
            return StepResult(float("nan"), float("nan"), 0.0, False)
        scale = self.scale.value
        norm = float(np.float32(math.sqrt(self.update.squares()) / (weight * scale)))
        loss = weighted_loss / weight
        finite = bool(np.isfinite(loss) and np.isfinite(norm))
        if finite:
            limit = self.config.optimizer.max_grad_norm
            clip = 1.0 if limit is None else min(1.0, limit / (norm + 1e-6))
            self.update.apply(clip / (weight * scale), lr)
        else:
            self.update.drop_gradients()
        self.scale.update(finite)
        return StepResult(loss, norm, weight, finite)

    def pieces(self) -> Iterator[Piece]:
        """What this rank writes into a checkpoint; frozen parameters and fixed tables are divided among all."""
        yield from self.update.pieces()
        for name, param in self._fixed():
            start, stop = own_share(param.size, self.mesh)
            if start < stop:
                yield Piece("model", name, tuple(param.shape), start, stop, _part(param, start, stop))

    def tensors(self) -> dict[tuple[str, str], tuple[int, ...]]:
        """Shapes by (kind, name) of all tensors a checkpoint holds."""
        trained = [(kind, name) for kind in saved_kinds(self.config) for name in self.weights.params]
        shapes = {key: self.shapes[key[1]] for key in trained}
        return shapes | {("model", name): self.shapes[name] for name, _ in self._fixed()}

    def wanted(self) -> list[tuple[str, str, int, int]]:
        """(kind, name, start, stop): what :meth:`load` will ask for on this rank."""
        fixed = [("model", name, 0, param.size) for name, param in self._fixed()]
        return [*self.update.wanted(), *fixed]

    def load(self, read: Read, kinds: Iterable[str], count: int) -> None:
        """Takes the state from a checkpoint; a collective call under ZeRO 1 and 2.

        read: gives the flat values of every (kind, name, start, stop) asked for. kinds: those the checkpoint has.
        count: optimizer updates done.
        """
        for kind in saved_kinds(self.config):
            if kind in kinds:
                self.update.fill(kind, read)
        for name, param in self._fixed():
            values = next(iter(read([("model", name, 0, param.size)])))
            param.set_data(Tensor(values.reshape(param.shape), param.dtype))
        if "ema" not in kinds:
            self.update.restart_averages()
        self.update.count = count
        self.update.write_back()

    def _fixed(self) -> list[tuple[str, Parameter]]:
        return [(name, param) for name, param in self.model.parameters_and_names() if name not in self.weights.params]

    def tokens(self, frames: int, height: int, width: int) -> int:
        """Patches of one sample."""
        return int(np.prod(self.model.token_grid(frames, height, width)))


def _part(param: Parameter, start: int, stop: int) -> Callable[[], np.ndarray]:
    return lambda: host(param).reshape(-1)[start:stop]

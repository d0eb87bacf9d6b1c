"""One optimizer step: gradients of the micro batches, their sum over ranks, and the update.

Every sample's loss is summed with its weight (0 for a sample whose clip did not decode) and divided by the weights of
the whole global batch, so a step is the same however the batch is spread over ranks and micro steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from mindspore import Tensor

from models.config import TrainConfig
from models.data.batch import MicroBatch, latent_shape
from models.diffusion import build as build_process
from models.gradients import CompiledGradients, EagerGradients, Gradients, Reduce, summed_loss
from models.layers.linear import as_dtype
from models.learner import Learner, StepResult
from models.loss_scale import LossScale
from models.parallel.mesh import Mesh
from models.parallel.sequence import divide
from models.parallel.sources import Weights
from models.parallel.units import make_units
from models.settings import fixed_shape as shape_of
from models.stdit import build
from models.update import Update
from models.vae.encode_batch import batch_encoder

__all__ = ["StepResult", "TrainStep"]


class TrainStep(Learner):
    """The model, its optimizer and its moving average, and the step that changes them.

    Weights may be set until :meth:`prepare`, which hands them to the optimizer (and shards them).
    """

    def __init__(
        self,
        config: TrainConfig,
        mesh: Mesh,
        *,
        fixed_shape: bool,
        dtype: str | None = None,
        folder: Path = Path("."),
    ) -> None:
        """folder: where relative paths of the autoencoder's weights start."""
        self.config, self.mesh = config, mesh
        # The CPU has hardly any bfloat16 kernels: it trains in float32 whatever the recipe says.
        self.dtype = dtype or (config.dtype if mesh.world.device == "Ascend" else "fp32")
        self.model = build(config.model, _latent_size(config), seed=config.seed, dtype=self.dtype)
        self.model.set_train(True)
        divide(self.model, mesh)
        self.encoder = batch_encoder(config, mesh.sp_group, folder)
        self.flow = build_process(config.diffusion, config.model)
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
        result = self.apply(weighted_loss, weight, lr)
        return replace(result, progress=told_progress, comm=self.mesh.traffic.take())

    def _micro_step(self, batch: MicroBatch, reduce: Reduce | None) -> np.ndarray:
        if self.encoder is not None:
            batch = self.encoder.encode(batch)
        start = time.perf_counter()
        numbers = self._gradients.run(batch, self.scale.value, reduce)
        if self.compiled and self.compile_seconds is None:
            self.compile_seconds = time.perf_counter() - start
        return numbers

    @contextmanager
    def averages(self) -> Iterator[None]:
        """The model computes with its moving averages, if there are any. A collective under ZeRO 1 and 2."""
        self.update.exchange_averages()
        try:
            yield
        finally:
            self.update.exchange_averages()

    def evaluate(self, batch: MicroBatch) -> np.ndarray:
        """float32 [2]: this rank's part of the weighted sum of losses and of the sum of weights; nothing learns."""
        batch = self._agreed(batch)
        if self.encoder is not None:
            batch = self.encoder.encode(batch)
        numbers = summed_loss(self.model, self.flow, batch)
        if self.mesh.sp_rank != 0:
            numbers[1] = 0
        self.mesh.traffic.take()
        return numbers

    def _agreed(self, batch: MicroBatch) -> MicroBatch:
        """A sample counts only where all ranks that share it could decode it."""
        if self.mesh.sp == 1:
            return batch
        counts = self.mesh.sp_group.all_reduce(Tensor(batch.weights)).asnumpy()
        return replace(batch, weights=(counts == self.mesh.sp).astype(np.float32))

    def tokens(self, frames: int, height: int, width: int) -> int:
        """Patches of one sample of that many pixels."""
        return int(np.prod(self.model.token_grid(*self.config.autoencoder.latent_size((frames, height, width)))))


def _latent_size(config: TrainConfig) -> tuple[int, int, int] | None:
    """The one size of latents, for the model that is made for one."""
    shape = shape_of(config.data) if config.model.type == "STDiT" else None
    return None if shape is None else latent_shape(config, shape)[1:]

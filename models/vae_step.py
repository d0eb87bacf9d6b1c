"""One optimizer step of an autoencoder, and of its discriminator where there is one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor
from mindspore import ops as P

from models.checkpoint.pieces import Piece
from models.config.train_vae import TrainVaeConfig
from models.data.clip_batch import ClipBatch
from models.layers.linear import as_dtype
from models.learner import Learner, Read, StepResult
from models.loss_scale import LossScale
from models.parallel.mesh import Mesh
from models.parallel.sources import Weights
from models.parallel.units import make_units
from models.update import Update
from models.vae import build_network
from models.vae.adversarial import adaptive_weight
from models.vae.critic import Critic, Pair
from models.vae.gradients import LossGradients, norm
from models.vae.lpips import LPIPS
from models.vae.objective import TERMS, Objective, freeze_images

# Losses that are told apart in the metrics, as far as the configuration has them.
_TOLD = (*TERMS, "generator")
_LAST_LAYERS = {
    ("OpenSoraVAE_V1_2", "spatial"): "spatial_vae.module.decoder.conv_out.weight",
    ("OpenSoraVAE_V1_2", "temporal"): "temporal_vae.decoder.conv_out.conv.weight",
    ("VideoAutoencoderKL", "spatial"): "module.decoder.conv_out.weight",
}


@dataclass
class _Sums:
    """Of this rank's micro steps: losses by name, weighted; weights; what the discriminator looks at."""

    terms: dict[str, float]
    weight: float
    pairs: list[Pair]


class VaeStep(Learner):
    """The autoencoder, its optimizer and its moving average. Weights may be set until :meth:`prepare`."""

    def __init__(self, config: TrainVaeConfig, mesh: Mesh, distance: LPIPS | None, dtype: str | None = None) -> None:
        """distance: of the perceptual loss, None for none."""
        self.config, self.mesh, self.compiled = config, mesh, config.compiled(mesh.world.device)
        self.compile_seconds: float | None = None
        # The CPU has hardly any bfloat16 kernels: it trains in float32 whatever the recipe says.
        self.dtype = dtype or (config.dtype if mesh.world.device == "Ascend" else "fp32")
        self.model = build_network(config.autoencoder, config.seed)
        self.model.set_train(True)
        if config.freeze_vae_2d:
            freeze_images(self.model)
        self.scale = LossScale(config.loss_scale, self.dtype)
        self.objective = Objective(config, self.model, distance, self.dtype)
        self.critic = Critic(config, mesh, self.dtype) if config.adversarial is not None else None
        self.shapes = {name: tuple(param.shape) for name, param in self.named_parameters()}
        trainable = {name: param for name, param in self.named_parameters() if param.requires_grad}
        shapes = {name: self.shapes[name] for name in trainable}
        units = make_units(shapes, _stages(trainable), mesh.size, config.layout.unit_size)
        self.weights = Weights(trainable, units, mesh, as_dtype(self.dtype))

    def prepare(self) -> None:
        """Starts the optimizers with the weights as they are."""
        units = self.weights.units
        self._gradients = LossGradients(self._loss, self.weights.params, units, self.compiled)
        self._generator = LossGradients(self._generator_loss, self.weights.params, units)
        self.update = Update(self.weights, self.mesh, self.config, self.compiled)
        if self.critic is not None:
            self.critic.prepare()

    def run(self, batches: Sequence[ClipBatch], lr: float, progress: float = 0.0) -> StepResult:
        """Trains on this rank's micro batches; a collective call: every rank makes it."""
        step = batches[0].step
        sums = _Sums(dict.fromkeys(_TOLD, 0.0), 0.0, [])
        for micro, batch in enumerate(batches):
            self._micro_step(batch, micro, sums)
        self._gradients.finish(self.update.reduce)
        own = np.array([*sums.terms.values(), sums.weight, progress], np.float32)
        *terms, weight, told_progress = (float(v) for v in self.mesh.everyone.all_reduce(Tensor(own)).asnumpy())
        result = self.apply(sum(terms), weight, lr)
        losses = {name: value / weight for name, value in zip(_TOLD, terms, strict=True) if value and weight}
        if self.critic is not None and self.critic.started(step) and weight and result.applied:
            own_lr = self.config.adversarial.lr or self.config.optimizer.lr
            losses["discriminator"] = self.critic.run(sums.pairs, lr * own_lr / self.config.optimizer.lr, step)
        return replace(result, progress=told_progress, comm=self.mesh.traffic.take(), losses=losses)

    def _micro_step(self, batch: ClipBatch, micro: int, sums: _Sums) -> None:
        x, noise = Tensor(batch.x), [Tensor(part) for part in batch.noise]
        scaled = Tensor(batch.weights * np.float32(self.scale.value))
        start = time.perf_counter()
        _, told, gradients = self._gradients.of((x, scaled, *noise))
        if self.compiled and self.compile_seconds is None:
            self.compile_seconds = time.perf_counter() - start
        for name, value in zip(TERMS, told.asnumpy(), strict=True):
            sums.terms[name] += float(value) / self.scale.value
        weight = float(batch.weights.sum())
        sums.weight += weight
        if self.critic is not None and self.critic.started(batch.step) and weight:
            gradients = self._with_critic(batch, micro, (x, scaled, *noise), gradients, sums)
        self._gradients.add(gradients)

    def _with_critic(
        self, batch: ClipBatch, micro: int, inputs: tuple[Tensor, ...], gradients: list[Tensor], sums: _Sums
    ) -> list[Tensor]:
        """The gradients and, with their adaptive weight, those of the generator's loss."""
        self._place = (batch.step, micro)
        value, recon, of_critic = self._generator.of(inputs)
        about, weight = self.config.adversarial, float(batch.weights.sum())
        place = self._gradients.place(_LAST_LAYERS[(self.config.autoencoder.type, about.last_layer)])
        norms = [norm(found[place]) / (weight * self.scale.value) for found in (gradients, of_critic)]
        factor = adaptive_weight(norms[0], norms[1]) * about.generator_factor * about.discriminator_factor
        sums.terms["generator"] += factor * value / self.scale.value
        good = np.flatnonzero(batch.weights)
        sums.pairs.append((Tensor(batch.x[good]), Tensor(recon.asnumpy()[good])))
        return [one + other * factor for one, other in zip(gradients, of_critic, strict=True)]

    def _loss(self, x: Tensor, weights: Tensor, *noise: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sum of all losses, and of each of ``TERMS``."""
        parts = []
        for term in self.objective.losses(x, noise):
            parts.append(P.zeros((1,), ms.float32) if term is None else (term * weights).sum().reshape(1))
        terms = P.concat(parts)
        return terms.sum(), terms

    def _generator_loss(self, x: Tensor, weights: Tensor, *noise: Tensor) -> tuple[Tensor, Tensor]:
        assert self.critic is not None
        recon = self.objective.reconstruct(x, noise)
        return (self.critic.generator_losses(recon, *self._place) * weights).sum(), recon

    def pieces(self) -> Iterator[Piece]:
        yield from super().pieces()
        if self.critic is not None:
            yield from self.critic.pieces()

    def tensors(self) -> dict[tuple[str, str], tuple[int, ...]]:
        return super().tensors() | (self.critic.tensors() if self.critic is not None else {})

    def wanted(self) -> list[tuple[str, str, int, int]]:
        return super().wanted() + (self.critic.wanted() if self.critic is not None else [])

    def load(self, read: Read, kinds: Iterable[str], count: int) -> None:
        super().load(read, kinds, count)
        if self.critic is not None:
            self.critic.load(read, kinds, 0)

    def facts(self) -> dict[str, Any]:
        return self.critic.facts() if self.critic is not None else {}

    def restore_facts(self, facts: Mapping[str, Any]) -> None:
        if self.critic is not None:
            self.critic.restore_facts(facts)

    def tokens(self, frames: int, height: int, width: int) -> int:
        """Latents of one sample."""
        return int(np.prod([side or 1 for side in self.config.autoencoder.latent_size((frames, height, width))]))


def _stages(names: Iterable[str]) -> list[list[str]]:
    """Prefixes of parameters, a block of the network each: whatever is small travels together anyway."""
    prefixes = (name.split(".") for name in names)
    return [[prefix] for prefix in dict.fromkeys(".".join(parts[: min(5, len(parts) - 1)]) + "." for parts in prefixes)]

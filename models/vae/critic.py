"""The discriminator as something that learns beside the autoencoder, with an optimizer of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor

from models import rng
from models.config.train_vae import AdversarialConfig, TrainVaeConfig
from models.layers.linear import as_dtype
from models.learner import Learner
from models.loss_scale import LossScale
from models.parallel.mesh import Mesh
from models.parallel.sources import Weights
from models.parallel.units import Unit
from models.update import Update
from models.vae.adversarial import DISCRIMINATOR_LOSSES, generator_losses
from models.vae.autoencoder_kl import as_rows
from models.vae.discriminator import build_discriminator
from models.vae.gradients import LossGradients

# Names of its tensors in checkpoints begin with this.
PREFIX = "discriminator."

# A real clip batch and its reconstruction, both [B, 3, T, H, W].
Pair = tuple[Tensor, Tensor]


class Critic(Learner):
    """Tells clips from reconstructions. Batch statistics are those of a rank's own clips, as upstream has them."""

    def __init__(self, config: TrainVaeConfig, mesh: Mesh, dtype: str) -> None:
        assert config.adversarial is not None
        self.about: AdversarialConfig = config.adversarial
        lr = self.about.lr
        optimizer = config.optimizer if lr is None else config.optimizer.model_copy(update={"lr": lr})
        self.config = config.model_copy(update={"optimizer": optimizer, "ema_decay": None})
        self.mesh, self.dtype = mesh, as_dtype(dtype)
        self.model = build_discriminator(self.about.discriminator, self.about.ndf, self.about.n_layers, config.seed)
        self.model.set_train(True)
        self.scale = LossScale(config.loss_scale, dtype)
        self.shapes = {name: tuple(param.shape) for name, param in self.named_parameters()}
        trainable = {name: param for name, param in self.named_parameters() if param.requires_grad}
        units = [Unit({name: self.shapes[name] for name in trainable}, mesh.size)]
        self.weights = Weights(trainable, units, mesh, self.dtype)

    def prepare(self) -> None:
        """Starts the optimizer with the weights as they are."""
        self._gradients = LossGradients(self._loss, self.weights.params, self.weights.units)
        self.update = Update(self.weights, self.mesh, self.config, compiled=False)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        for name, param in self.model.parameters_and_names():
            yield PREFIX + name, param

    def started(self, step: int) -> bool:
        """Whether adversarial losses count in ``step`` (from 0)."""
        return step >= self.about.start and self.about.discriminator_factor > 0

    def generator_losses(self, recon: Tensor, step: int, micro: int) -> Tensor:
        """float32 [B]: how well the critic sees through each reconstruction; gradients flow to ``recon`` alone."""
        self._seed_dropout(step, micro, "generator")
        kind = "non-saturating" if self.about.loss == "non-saturating" else "hinge"
        rows = generator_losses(self._logits(recon), kind)
        return rows.reshape(recon.shape[0], -1).mean(-1)

    def run(self, pairs: Sequence[Pair], lr: float, step: int) -> float:
        """One optimizer step; a collective call. The loss of the global batch."""
        numbers = np.zeros(2, np.float32)
        for micro, (real, fake) in enumerate(pairs):
            self._seed_dropout(step, micro, "discriminator")
            _, found, gradients = self._gradients.of((real, fake, Tensor(np.float32(self.scale.value))))
            self._gradients.add(gradients)
            numbers += np.array([float(found.asnumpy()), real.shape[0]], np.float32)
        self._gradients.finish(self.update.reduce)
        loss, weight = (float(value) for value in self.mesh.everyone.all_reduce(Tensor(numbers)).asnumpy())
        result = self.apply(loss, weight, lr)
        self._agree_on_statistics()
        return result.loss

    def _loss(self, real: Tensor, fake: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss of the clips, times their number: sums over ranks divide by all clips."""
        loss = DISCRIMINATOR_LOSSES[self.about.loss](self._logits(real), self._logits(fake))
        total = loss * (self.about.discriminator_factor * real.shape[0])
        return total * scale, total

    def _logits(self, x: Tensor) -> Tensor:
        x = as_rows(x) if self.about.discriminator == "NLayerDiscriminator" else x
        return self.model(x.astype(self.dtype)).astype(ms.float32)

    def _seed_dropout(self, step: int, micro: int, purpose: str) -> None:
        generator = rng.stream(self.config.seed, "dropout", purpose, step, self.mesh.rank, micro)
        rate = self.model.dropout

        def mask(shape: tuple[int, ...]) -> np.ndarray:
            return (generator.random(shape, np.float32) >= rate).astype(np.float32) / np.float32(1 - rate)

        self.model.mask = mask

    def _agree_on_statistics(self) -> None:
        """Running means and variances become the mean over ranks: a checkpoint holds one of each."""
        if self.mesh.size == 1:
            return
        for param in self.model.statistics():
            total = self.mesh.everyone.all_reduce(param.value().astype(ms.float32))
            param.set_data((total / self.mesh.size).astype(param.dtype))

    def facts(self) -> dict[str, Any]:
        return {"discriminator": {"updates": self.update.count, "loss_scale": self.scale.state()}}

    def restore_facts(self, facts: Mapping[str, Any]) -> None:
        own = facts.get("discriminator")
        if own is not None:
            self.update.count = int(own["updates"])
            self.scale.restore(own["loss_scale"])

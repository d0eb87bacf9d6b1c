"""Pixels of a training batch into latents, before the loss: no gradients, noise by sample."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mindspore import Tensor

from models import rng
from models.config import TrainConfig
from models.data.batch import POSTERIOR, MicroBatch
from models.parallel.group import Group
from models.vae import Autoencoder, build


class BatchEncoder:
    """Draws latents from the autoencoder's posterior.

    A sample's noise is named by its step and place in the global batch, so it is the same under every layout; ranks of
    a sequence-parallel group, who hold the same samples, share the work.
    """

    def __init__(self, autoencoder: Autoencoder, seed: int) -> None:
        self._autoencoder, self._seed = autoencoder, seed
        self.note = autoencoder.note

    def encode(self, batch: MicroBatch) -> MicroBatch:
        """The batch with latents float32 [B, C, t, h, w] for x; a collective call of the group."""
        streams = [rng.stream(self._seed, POSTERIOR, *place) for place in batch.places]
        frames, height, width = batch.x.shape[2:]
        noise = self._autoencoder.draw_noise(streams, (frames, height, width))
        latents = self._autoencoder.encode(Tensor(batch.x), noise)
        return replace(batch, x=latents.asnumpy())


def batch_encoder(config: TrainConfig, group: Group, folder: Path) -> BatchEncoder | None:
    """The encoder of a training; None where samples are latents already or pixels are trained on. PayloadError."""
    if config.autoencoder.type == "identity" or config.data.latents:
        return None
    return BatchEncoder(build(config.autoencoder, group, folder), config.seed)

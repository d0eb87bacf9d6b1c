"""The autoencoder as sampling uses it: arrays in, arrays out, built when it is first needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mindspore import Tensor

from models import vae
from models.config.sample import SampleConfig
from models.events import Log
from models.parallel.mesh import Mesh


class Coder:
    """Pixels to latents and back; ranks that share a sample share this work. Text to latents needs none of it."""

    def __init__(self, config: SampleConfig, root: Path, mesh: Mesh, log: Log) -> None:
        self._config, self._root, self._mesh, self._log = config, root, mesh, log
        self._built: vae.Autoencoder | None = None

    def _autoencoder(self) -> vae.Autoencoder:
        if self._built is None:
            assert self._config.autoencoder is not None
            self._built = vae.build(self._config.autoencoder, self._mesh.sp_group, self._root)
            if self._built.note and self._mesh.rank == 0:
                self._log.info(self._built.note)
        return self._built

    def encode(self, x: np.ndarray) -> np.ndarray:
        """float32 [1, 3, T, H, W] in [-1, 1] -> latents float32 [1, C, t, h, w], the means."""
        return _host(self._autoencoder().encode(Tensor(x)))

    def decode(self, z: np.ndarray, frames: int) -> np.ndarray:
        """Latents [1, C, t, h, w] -> float32 [1, 3, frames, H, W]."""
        return _host(self._autoencoder().decode(Tensor(z), frames))


def _host(x: Tensor) -> np.ndarray:
    values: np.ndarray = x.float().asnumpy()
    return values

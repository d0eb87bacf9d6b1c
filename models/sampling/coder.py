"""The autoencoder as sampling uses it: arrays in, arrays out, built when it is first needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor

from models import vae
from models.config.sample import SampleConfig
from models.parallel.mesh import Mesh


class Coder:
    """Pixels to latents and back. Latents are sampled from text without it."""

    def __init__(self, config: SampleConfig, root: Path, mesh: Mesh) -> None:
        self._config, self._root, self._mesh = config, root, mesh
        self._built: Any = None

    def _autoencoder(self) -> Any:
        if self._built is None:
            assert self._config.autoencoder is not None
            self._built = vae.build(self._config.autoencoder)
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

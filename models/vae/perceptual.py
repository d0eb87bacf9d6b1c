"""The network of the perceptual loss, as the configuration names it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.config.train_vae import PerceptualConfig
from models.convert.files import open_weights
from models.exits import BAD_CONFIG, PayloadError
from models.vae.lpips import LPIPS, from_weights, random_features

_PARTS = ("features.", "net.", "lin", "scaling_layer.")


def build_perceptual(config: PerceptualConfig, folder: Path, seed: int) -> LPIPS:
    """LPIPS from its files, or random features. PayloadError where files are missing or incomplete."""
    if config.type == "random":
        return random_features(config.channels, seed)
    if config.vgg is None:
        raise PayloadError(
            BAD_CONFIG,
            "LPIPS has no weights",
            where="perceptual.vgg",
            why="it measures with a trained VGG16",
            next_step="name files of VGG16 and LPIPS in perceptual.vgg and perceptual.lin, or do without it",
        )
    paths = [folder / name for name in (config.vgg, config.lin) if name is not None]
    weights: dict[str, np.ndarray] = {}
    for path in paths:
        # VGG16's classifier is most of its file and of no use here.
        stored = open_weights(path).weights
        weights |= {name: value.values() for name, value in stored.items() if name.startswith(_PARTS)}
    return from_weights(weights, ", ".join(str(path) for path in paths))

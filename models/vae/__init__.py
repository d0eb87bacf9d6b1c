"""Autoencoders: pixels to latents and back.

:func:`build` gives what training, sampling and caching use, frozen; :func:`build_network` the network alone, with
gradients, for training it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from models.config import AutoencoderConfig
from models.exits import BAD_CONFIG, PayloadError
from models.vae.autoencoder import Autoencoder, ClipAutoencoder, FrameAutoencoder, Identity
from models.vae.autoencoder_kl import VideoAutoencoderKL
from models.vae.initial import initialize
from models.vae.loading import load
from models.vae.pipeline import VideoAutoencoderPipeline

if TYPE_CHECKING:
    from models.parallel.group import Group

__all__ = ["Autoencoder", "VideoAutoencoderKL", "VideoAutoencoderPipeline", "build", "build_network"]


def build(config: AutoencoderConfig, group: Group | None = None, folder: Path | str = ".") -> Autoencoder:
    """The autoencoder with its weights, frozen. PayloadError where they are missing or do not fit.

    group: ranks that share its work. folder: where relative paths of weights start.
    """
    if config.type == "identity":
        return Identity(config, group)
    if not config.has_weights:
        raise PayloadError(
            BAD_CONFIG,
            f"autoencoder {config.type} has no weights",
            where="autoencoder.pretrained",
            why="without them its latents are noise",
            next_step="name a .safetensors file, or set autoencoder.type to identity",
        )
    network = build_network(config, seed=0)
    load(network, config, Path(folder))
    return wrap(config, network, group)


def build_network(config: AutoencoderConfig, seed: int) -> VideoAutoencoderKL | VideoAutoencoderPipeline:
    """The network with initial weights that depend on ``seed`` and the parameters' names alone; reads no files."""
    network: VideoAutoencoderKL | VideoAutoencoderPipeline
    if config.type == "VideoAutoencoderKL":
        network = VideoAutoencoderKL(config.spatial, config.scale_factor)
    elif config.type == "OpenSoraVAE_V1_2":
        network = VideoAutoencoderPipeline(config)
    else:
        raise ValueError(f"autoencoder {config.type} has no network")
    initialize(network, seed)
    return network


def wrap(
    config: AutoencoderConfig, network: VideoAutoencoderKL | VideoAutoencoderPipeline, group: Group | None = None
) -> Autoencoder:
    """A network as others use it; freezes it."""
    if isinstance(network, VideoAutoencoderPipeline):
        return ClipAutoencoder(config, network, group)
    return FrameAutoencoder(config, network, group)

"""Weights of autoencoders from files: published ones, with old and new names, and our own checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from mindspore import nn

from models.config import AutoencoderConfig
from models.exits import BAD_CHECKPOINT, PayloadError
from models.vae.pipeline import VideoAutoencoderPipeline, set_statistics
from models.weights import load_state_dict, mismatches

# Names inside a diffusers folder.
_FILES = ("model.safetensors", "diffusion_pytorch_model.safetensors")
# diffusers before 0.18 -> after; its own loading renames them in the same way.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_ATTENTION = re.compile(r"(.*\battentions\.\d+)\.(query|key|value|proj_attn|to_q|to_k|to_v|to_out\.0)\.(weight|bias)")
_SHOWN = 20


def load(network: nn.Cell, config: AutoencoderConfig, folder: Path) -> None:
    """Fills the network from ``pretrained`` and, over it, ``pretrained_2d``; paths start at ``folder``. PayloadError.

    ``scale`` and ``shift`` of the configuration win over those of the file.
    """
    if config.pretrained is not None:
        path = folder / config.pretrained
        fill(network, whole_names(read_weights(path), network), path)
    if config.pretrained_2d is not None:
        path = folder / config.pretrained_2d
        images = network.spatial_vae if isinstance(network, VideoAutoencoderPipeline) else network
        fill(images.module, image_names(read_weights(path)), path)
    if isinstance(network, VideoAutoencoderPipeline):
        for target, value in ((network.scale, config.scale), (network.shift, config.shift)):
            if value is not None:
                set_statistics(target, value, 0.0)


def read_weights(path: Path, discriminator: bool = False) -> dict[str, np.ndarray]:
    """Weights by name of a file, a diffusers folder, or a checkpoint ``step-N``. PayloadError.

    discriminator: with that of adversarial training, which checkpoints may hold beside the autoencoder.
    """
    # It knows the training step, which knows this module.
    from models.checkpoint.state import weights_of

    inside = [path / name for name in _FILES if (path / name).is_file()]
    weights = weights_of(inside[0] if inside else path)
    return {name: value for name, value in weights.items() if discriminator or not name.startswith("discriminator.")}


def whole_names(weights: Mapping[str, np.ndarray], network: nn.Cell) -> dict[str, np.ndarray]:
    """The names of ``network``, which is frame-wise or both parts in a row."""
    if not isinstance(network, VideoAutoencoderPipeline):
        return {f"module.{name}": value for name, value in image_names(weights).items()}
    own = dict(network.parameters_and_names())
    images = {name: value for name, value in weights.items() if name.startswith("spatial_vae.")}
    found = {name: value for name, value in weights.items() if name not in images}
    found |= {f"spatial_vae.module.{name}": value for name, value in image_names(images).items()}
    for name in ("scale", "shift"):
        # Files of networks without statistics leave them out; a single number stands for all channels.
        value = np.asarray(found.get(name, own[name].asnumpy()))
        found[name] = np.broadcast_to(value, own[name].shape).copy() if value.size == 1 else value
    return found


def image_names(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names and shapes of diffusers 0.27 for an ``AutoencoderKL``: no prefix, attention as linear layers."""
    renamed = {}
    for name, value in weights.items():
        for prefix in ("spatial_vae.", "module."):
            name = name.removeprefix(prefix)
        attention = _ATTENTION.fullmatch(name)
        if attention is not None:
            block, layer, kind = attention.groups()
            name = f"{block}.{_OLD_ATTENTION.get(layer, layer)}.{kind}"
            if value.ndim == 4 and value.shape[2:] == (1, 1):
                value = value.reshape(value.shape[:2])
        renamed[name] = value
    return renamed


def fill(network: nn.Cell, weights: Mapping[str, np.ndarray], path: Path) -> None:
    """All of them or PayloadError, which lists what does not fit."""
    wrong = mismatches(network, weights)
    if wrong:
        more = [f"… and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else []
        shown = "\n    ".join(["", *wrong[:_SHOWN], *more])
        raise PayloadError(
            BAD_CHECKPOINT,
            f"weights do not fit the autoencoder: {len(wrong)} differences",
            where=str(path),
            why=shown,
            next_step="make autoencoder.type, spatial and temporal describe the network these weights come from",
        )
    load_state_dict(network, weights)

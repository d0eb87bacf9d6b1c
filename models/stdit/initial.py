"""Initial weights of STDiT3, drawn on the host by parameter name. Upstream: STDiT3.initialize_weights."""

from __future__ import annotations

import math

import numpy as np
from mindspore import Tensor, nn

from models.layers.tables import inverse_frequencies
from models.rng import stream

_ZERO_IN_TEMPORAL = ("attn.proj.weight", "cross_attn.proj.weight", "mlp.fc2.weight")


def initial_value(name: str, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """float32 values of the parameter ``name``: Xavier for linear layers, zeros where the original starts at zero."""
    if name == "rope.freqs":
        return inverse_frequencies(shape[0])
    if name.startswith("x_embedder.proj."):
        raise ValueError("the patch projection needs its fan-in: use patch_projection")
    if name.endswith("_norm.weight"):
        return np.ones(shape, np.float32)
    if name.endswith(("scale_shift_table", "y_embedding")):
        return generator.standard_normal(shape, np.float32) / np.float32(math.sqrt(shape[-1]))
    if name == "fps_embedder.mlp.0.weight":
        return generator.standard_normal(shape, np.float32) * np.float32(0.02)
    zero = name.endswith(".bias") or name == "fps_embedder.mlp.2.weight"
    if zero or (name.startswith("temporal_blocks.") and name.endswith(_ZERO_IN_TEMPORAL)):
        return np.zeros(shape, np.float32)
    return uniform(shape, math.sqrt(6.0 / (shape[0] + shape[1])), generator)


def uniform(shape: tuple[int, ...], bound: float, generator: np.random.Generator) -> np.ndarray:
    """float32 in [-bound, bound)."""
    return (generator.random(shape, np.float32) * np.float32(2) - np.float32(1)) * np.float32(bound)


def initialize(model: nn.Cell, seed: int) -> None:
    """Fills every parameter of an STDiT3; independent of MindSpore's global seed and of the order of parameters."""
    values = dict(model.parameters_and_names())
    fan_in = math.prod(values["x_embedder.proj.weight"].shape[1:])
    for name, param in values.items():
        generator = stream(seed, "initial weights", name)
        if name.startswith("x_embedder.proj."):  # PyTorch's default for convolutions
            value = uniform(tuple(param.shape), 1.0 / math.sqrt(fan_in), generator)
        else:
            value = initial_value(name, tuple(param.shape), generator)
        param.set_data(Tensor(value))

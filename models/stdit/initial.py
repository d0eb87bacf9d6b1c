"""Initial weights, drawn on the host by parameter name. Upstream: ``initialize_weights`` of the three classes.

STDiT and STDiT2 begin as PixArt does: text and temporal attention add nothing at first, and neither does the output.
STDiT3 has its temporal blocks add nothing.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from mindspore import Tensor, nn

from models.config import ModelConfig
from models.layers.tables import inverse_frequencies, sincos_table_1d, sincos_table_2d
from models.rng import stream

_ZERO_IN_TEMPORAL = ("attn.proj.weight", "cross_attn.proj.weight", "mlp.fc2.weight")
_ZERO = ("attn_temp.proj.weight", "cross_attn.proj.weight", "final_layer.linear.weight")
# Normal with standard deviation 0.02.
_NORMAL = ("t_embedder.mlp.0.weight", "t_embedder.mlp.2.weight", "t_block.1.weight", "t_block_temp.1.weight",
           "y_embedder.y_proj.fc1.weight", "y_embedder.y_proj.fc2.weight")  # fmt: skip


def initial_value(config: ModelConfig, name: str, shape: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
    """float32 values of the parameter ``name``, fixed position tables left out."""
    if name == "rope.freqs":
        return inverse_frequencies(shape[0])
    if name.endswith("_norm.weight"):
        return np.ones(shape, np.float32)
    if name.endswith(("scale_shift_table", "scale_shift_table_temporal", "y_embedding")):
        return draw.standard_normal(shape, np.float32) / np.float32(math.sqrt(shape[-1]))
    v3 = config.type == "STDiT3"
    if name == "x_embedder.proj.bias" or (v3 and name == "x_embedder.proj.weight"):  # PyTorch's for convolutions
        return uniform(shape, 1.0 / math.sqrt(config.in_channels * math.prod(config.patch_size)), draw)
    if name.endswith(".bias") or (_starts_at_zero_v3(name) if v3 else name.endswith(_ZERO)):
        return np.zeros(shape, np.float32)
    if (name == "fps_embedder.mlp.0.weight") if v3 else (name in _NORMAL):
        return draw.standard_normal(shape, np.float32) * np.float32(0.02)
    return uniform(shape, math.sqrt(6.0 / (shape[0] + math.prod(shape[1:]))), draw)


def _starts_at_zero_v3(name: str) -> bool:
    temporal = name.startswith("temporal_blocks.") and name.endswith(_ZERO_IN_TEMPORAL)
    return temporal or name == "fps_embedder.mlp.2.weight"


def uniform(shape: tuple[int, ...], bound: float, generator: np.random.Generator) -> np.ndarray:
    """float32 in [-bound, bound)."""
    return (generator.random(shape, np.float32) * np.float32(2) - np.float32(1)) * np.float32(bound)


def position_tables(config: ModelConfig, grid: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """The fixed tables of STDiT for a grid of patches: float32 [1, h w, hidden] and [1, t, hidden]."""
    space = sincos_table_2d(config.hidden_size, grid[1:], config.space_scale)
    time = sincos_table_1d(config.hidden_size, grid[0], config.time_scale)
    return {"pos_embed": space[None].astype(np.float32), "pos_embed_temporal": time[None].astype(np.float32)}


def initialize(model: nn.Cell, seed: int) -> None:
    """Fills every parameter; independent of MindSpore's global seed and of the order of parameters."""
    config: ModelConfig = model.config
    fixed: dict[str, Any] = {}
    if config.type == "STDiT":
        fixed = position_tables(config, model.token_grid(*model.latent_size))
    for name, param in model.parameters_and_names():
        value = fixed.get(name)
        if value is None:
            value = initial_value(config, name, tuple(param.shape), stream(seed, "initial weights", name))
        param.set_data(Tensor(value))

"""Names and shapes of the transformers' parameters, as in the original state dictionaries. No MindSpore here.

What the classes of models/stdit really have is compared with this by the tests.
"""

from __future__ import annotations

import math

from models.config import ModelConfig

Shape = tuple[int, ...]
FREQUENCIES = 256
# Fixed tables, never trained; the others count as parameters.
BUFFERS = ("rope.freqs", "y_embedder.y_embedding", "pos_embed", "pos_embed_temporal")


def parameter_shapes(model: ModelConfig, grid: Shape | None = None) -> dict[str, Shape]:
    """Shapes by name, buffers included. ``grid``: patches along T, H and W, for STDiT's tables (else left out)."""
    size = model.hidden_size
    volume = math.prod(model.patch_size)
    shapes = {"x_embedder.proj.weight": (size, model.in_channels, *model.patch_size), "x_embedder.proj.bias": (size,)}
    shapes |= _embedder("t_embedder", size) | _linear("t_block.1", size, 6 * size)
    shapes |= _linear("y_embedder.y_proj.fc1", model.caption_channels, size)
    shapes |= _linear("y_embedder.y_proj.fc2", size, size)
    shapes["y_embedder.y_embedding"] = (model.model_max_length, model.caption_channels)
    shapes |= _linear("final_layer.linear", size, volume * model.out_channels)
    shapes["final_layer.scale_shift_table"] = (2, size)
    if model.type == "STDiT":
        if grid is not None:
            shapes |= {"pos_embed": (1, grid[1] * grid[2], size), "pos_embed_temporal": (1, grid[0], size)}
    else:
        shapes |= {"rope.freqs": (size // model.num_heads // 2,)} | _embedder("fps_embedder", size)
    if model.type == "STDiT2":
        shapes |= _linear("t_block_temp.1", size, 3 * size) | _embedder("fl_embedder", size)
        shapes |= _embedder("csize_embedder", size // 3) | _embedder("ar_embedder", size // 3)
    for index in range(model.depth):
        for name in block_names(model, index):
            shapes |= {f"{name}.{part}": shape for part, shape in _block(model).items()}
    return shapes


def block_names(model: ModelConfig, index: int) -> list[str]:
    """Names of the ``index``-th block, or pair of blocks."""
    if model.type == "STDiT3":
        return [f"spatial_blocks.{index}", f"temporal_blocks.{index}"]
    return [f"blocks.{index}"]


def frozen(model: ModelConfig, name: str) -> bool:
    """Whether the parameter ``name`` is kept out of training."""
    return (
        name in BUFFERS
        or (model.only_train_temporal and not name.startswith("temporal_blocks."))
        or (model.freeze == "not_temporal" and "attn_temp" not in name)
        or (model.freeze == "text" and "cross_attn" in name)
        or (model.freeze_y_embedder and name.startswith("y_embedder."))
    )


def _linear(name: str, inputs: int, outputs: int) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _embedder(name: str, size: int) -> dict[str, Shape]:
    return _linear(f"{name}.mlp.0", FREQUENCIES, size) | _linear(f"{name}.mlp.2", size, size)


def _attention(model: ModelConfig, name: str) -> dict[str, Shape]:
    size = model.hidden_size
    shapes = _linear(f"{name}.qkv", size, 3 * size) | _linear(f"{name}.proj", size, size)
    if model.qk_norm:
        head: Shape = (size // model.num_heads,)
        shapes |= {f"{name}.q_norm.weight": head, f"{name}.k_norm.weight": head}
    return shapes


def _block(model: ModelConfig) -> dict[str, Shape]:
    size = model.hidden_size
    hidden = int(size * model.mlp_ratio)
    shapes = _attention(model, "attn")
    if model.type != "STDiT3":
        shapes |= _attention(model, "attn_temp")
    if model.type == "STDiT2":
        shapes["scale_shift_table_temporal"] = (3, size)
    shapes |= _linear("cross_attn.q_linear", size, size) | _linear("cross_attn.kv_linear", size, 2 * size)
    shapes |= _linear("cross_attn.proj", size, size)
    shapes |= _linear("mlp.fc1", size, hidden) | _linear("mlp.fc2", hidden, size)
    shapes["scale_shift_table"] = (6, size)
    return shapes

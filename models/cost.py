"""What training needs at least: parameters, and bytes of memory of one device.

A lower bound on purpose: what it refuses cannot run, what it lets pass may still be too much (allocator, collectives'
buffers, the autoencoder, text encoders and kernels' workspaces are left out). No MindSpore here.

With P parameters of which T train, b bytes per element of the compute type (4 fp32, 2 fp16 and bf16), W workers:

* model states, Rajbhandari et al. 2020 (ZeRO, arXiv:1910.02054, section 3.1): weights b P; gradients b T; Adam's two
  moments 8 T; where b is 2 a float32 master copy 4 T; plus 4 P for the moving average (EMA).
  ZeRO 1 divides moments, master copy and EMA by W, ZeRO 2 the gradients as well, ZeRO 3 the weights as well.
* activations of B samples of N tokens of C = hidden_size, divided by sp. One STDiT3 block (upstream:
  opensora/models/stdit/stdit3.py, ``STDiT3Block``) keeps for its backward at least (11 + 2 mlp_ratio) B N C elements:
  the inputs of two norms, of qkv, of both projections, of the cross attention's query and of the MLP (7), q, k, v and
  the cross attention's query (4), and the MLP's hidden layer before and after its GELU (2 mlp_ratio). There is a
  spatial and a temporal block per depth; one of STDiT or STDiT2 does both and keeps 5 or 6 more of them. With
  recomputation (Chen et al. 2016, arXiv:1604.06174) every block keeps its input, B N C elements, and only the block at
  work keeps all. Attention is counted as fused: no N x N matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from models.config import AutoencoderConfig, ModelConfig, TrainConfig
from models.shapes import BUFFERS, frozen, parameter_shapes

_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
# Elements of width that a block keeps beside those of its MLP's hidden layer.
_KEPT = {"STDiT": 16, "STDiT2": 17, "STDiT3": 11}


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters: all, and those that are trained."""

    total: int
    trained: int


@dataclass(frozen=True)
class Memory:
    """Least bytes on one device: states, whatever the batch, and activations per sample."""

    weights: int
    gradients: int
    optimizer: int
    ema: int
    per_sample: int

    @property
    def states(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.ema

    def total(self, batch_size: int) -> int:
        return self.states + batch_size * self.per_sample

    def largest_batch(self, limit: int) -> int:
        """The largest batch that stays below ``limit`` bytes; 0 where not even one sample does."""
        return max(0, (limit - self.states) // self.per_sample)


def count_parameters(model: ModelConfig) -> Parameters:
    """Parameters of a transformer; fixed tables (rope.freqs, y_embedding, positions) are not counted.

    Captions that come projected (``skip_y_embedder``) leave their projection untrained.
    """
    counts = {name: math.prod(shape) for name, shape in parameter_shapes(model).items() if name not in BUFFERS}
    idle = ("y_embedder.",) if model.skip_y_embedder else ()
    trained = [size for name, size in counts.items() if not frozen(model, name) and not name.startswith(idle)]
    return Parameters(sum(counts.values()), sum(trained))


def latent_size(autoencoder: AutoencoderConfig, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """(frames, height, width) of the latents of a clip; sides smaller than one latent count as one."""
    latents, rows, columns = (value or 0 for value in autoencoder.latent_size((frames, height, width)))
    return latents, max(1, rows), max(1, columns)


def tokens(config: TrainConfig, frames: int, height: int, width: int) -> int:
    """Tokens of one sample: patches of its latents, the last ones padded."""
    latent = latent_size(config.autoencoder, frames, height, width)
    return math.prod(math.ceil(size / patch) for size, patch in zip(latent, config.model.patch_size, strict=True))


def training_memory(config: TrainConfig, sample_tokens: int, world: int, dtype: str = "") -> Memory:
    """Least bytes of one device for samples of ``sample_tokens`` tokens on ``world`` workers.

    dtype: what is really computed in, where it is not ``config.dtype`` (CPUs train in fp32).
    """
    layout, model = config.layout, config.model
    size = _BYTES[dtype or config.dtype]
    parameters = count_parameters(model)
    share = [world if layout.zero >= stage else 1 for stage in (1, 2, 3)]
    element = sample_tokens * model.hidden_size * size
    block = (_KEPT[model.type] + 2 * model.mlp_ratio) * element
    blocks = model.depth * (2 if model.type == "STDiT3" else 1)
    kept = blocks * element + block if config.recompute else blocks * block
    return Memory(
        weights=parameters.total * size // share[2],
        gradients=parameters.trained * size // share[1],
        optimizer=parameters.trained * (8 + (4 if size == 2 else 0)) // share[0],
        ema=parameters.total * 4 // share[0] if config.ema_decay is not None else 0,
        per_sample=max(1, int(kept) // layout.sp),
    )


def checkpoint_bytes(config: TrainConfig) -> int:
    """Bytes of one checkpoint: model, EMA and Adam's moments in float32."""
    parameters = count_parameters(config.model)
    return 4 * parameters.total * (1 if config.ema_decay is None else 2) + 8 * parameters.trained

"""Initial weights of the autoencoders, drawn on the host by parameter name: PyTorch's defaults.

Upstream: ``VAE_Temporal`` and diffusers' ``AutoencoderKL`` initialise nothing themselves.
"""

from __future__ import annotations

import math

import numpy as np
from mindspore import Tensor, nn

from models.rng import stream


def initialize(model: nn.Cell, seed: int) -> None:
    """Fills convolutions and linear layers uniformly within 1 / sqrt(fan-in); norms are 1 and 0, and stay so.

    Independent of MindSpore's global seed and of the order of parameters.
    """
    for prefix, cell in model.cells_and_names():
        own = cell._params
        weight = own.get("weight")
        if weight is None or weight.ndim < 2:
            continue
        bound = 1.0 / math.sqrt(math.prod(weight.shape[1:]))
        for name, param in own.items():
            generator = stream(seed, "initial weights", f"{prefix}.{name}" if prefix else name)
            values = generator.random(tuple(param.shape), np.float32) * np.float32(2) - np.float32(1)
            param.set_data(Tensor(values * np.float32(bound)))

"""Random numbers of results, by what they are for: the same whatever else is sampled, on however many ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.rng import stream
from models.sampling.requests import Request


def latent_noise(requests: Sequence[Request], loop: int, shape: Sequence[int]) -> np.ndarray:
    """Where sampling starts: float32 [B, *shape], a row a request."""
    return _rows("sample", requests, shape, loop)


def step_noise(requests: Sequence[Request], loop: int, draw: int, shape: Sequence[int]) -> np.ndarray:
    """The ``draw``-th noise that a sampler asks for on its way: float32 [B, *shape]."""
    return _rows("sample step", requests, shape, loop, draw)


def _rows(purpose: str, requests: Sequence[Request], shape: Sequence[int], *counters: int) -> np.ndarray:
    return np.stack(
        [
            stream(request.seed, purpose, request.prompt, request.variant, *counters).standard_normal(shape, np.float32)
            for request in requests
        ]
    )

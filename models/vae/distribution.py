"""Diagonal Gaussians over latents. Functions of tensors alone, so that compiled steps may use them.

Upstream: opensora/models/vae/utils.py, ``DiagonalGaussianDistribution``.
"""

from __future__ import annotations

from mindspore import Tensor
from mindspore import ops as P

from models import ops

_LOWEST, _HIGHEST = -30.0, 20.0


def mean_and_logvar(moments: Tensor) -> tuple[Tensor, Tensor]:
    """moments [N, 2 C, ...] -> mean and logarithm of the variance, each [N, C, ...]; the latter within [-30, 20]."""
    mean, logvar = P.split(moments, moments.shape[1] // 2, axis=1)
    return mean, P.clip_by_value(logvar, _LOWEST, _HIGHEST)


def deviation(logvar: Tensor) -> Tensor:
    """Standard deviation."""
    return ops.exp(0.5 * logvar)


def draw(moments: Tensor, noise: Tensor | None) -> Tensor:
    """mean + deviation * noise, with standard normal noise [N, C, ...]; the mean where there is none."""
    mean, logvar = mean_and_logvar(moments)
    return mean if noise is None else mean + deviation(logvar) * noise.astype(mean.dtype)


def divergence(moments: Tensor, start: int = 1) -> Tensor:
    """Kullback-Leibler divergence from the standard normal, summed over the axes from ``start`` on.

    0.5 * (mean^2 + variance - 1 - log variance). [N] for start 1.
    """
    mean, logvar = mean_and_logvar(moments)
    terms = mean * mean + ops.exp(logvar) - 1.0 - logvar
    return 0.5 * terms.reshape((*terms.shape[:start], -1)).sum(-1)

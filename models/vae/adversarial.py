"""Adversarial losses. Upstream: opensora/models/vae/losses.py, branches opensora/v1.2 and main (2.0).

A discriminator tells real frames from reconstructions (patches of logits); the generator is the autoencoder.
"""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor
from mindspore import ops as P

# Bounds of the adaptive weight, and what keeps its denominator from zero.
_LARGEST_WEIGHT = 1e4
_WEIGHT_EPS = 1e-4


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """0.5 (mean relu(1 - real) + mean relu(1 + fake)); Lim & Ye 2017."""
    return 0.5 * (P.relu(1.0 - real).mean() + P.relu(1.0 + fake).mean())


def vanilla(real: Tensor, fake: Tensor) -> Tensor:
    """0.5 (mean softplus(-real) + mean softplus(fake)); Goodfellow et al. 2014."""
    return 0.5 * (softplus(-real).mean() + softplus(fake).mean())


def wasserstein(real: Tensor, fake: Tensor) -> Tensor:
    """0.5 (mean fake - mean real), the penalty of the gradient left to the caller; Arjovsky et al. 2017."""
    return 0.5 * (fake.mean() - real.mean())


def non_saturating(real: Tensor, fake: Tensor) -> Tensor:
    """0.5 (mean cross-entropy of real with 1 + that of fake with 0); MAGVIT's form of ``vanilla``."""
    return 0.5 * (sigmoid_cross_entropy(real, 1.0).mean() + sigmoid_cross_entropy(fake, 0.0).mean())


# Loss of the discriminator by its name in upstream's configurations.
DISCRIMINATOR_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hinge": hinge,
    "vanilla": vanilla,
    "wgan-gp": wasserstein,
    "non-saturating": non_saturating,
}


def generator_loss(fake: Tensor, kind: str = "hinge") -> Tensor:
    """Scalar, of logits [B, ...]: ``non-saturating`` is the mean cross-entropy with 1, all others -mean."""
    return generator_losses(fake, kind).mean()


def generator_losses(fake: Tensor, kind: str = "hinge") -> Tensor:
    """The generator's loss of each clip or frame [B]; their mean is :func:`generator_loss`."""
    rows = fake.reshape(fake.shape[0], -1)
    return sigmoid_cross_entropy(rows, 1.0).mean(-1) if kind == "non-saturating" else -rows.mean(-1)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), without overflow."""
    return P.relu(x) + P.log1p(P.exp(-P.abs(x)))


def sigmoid_cross_entropy(logits: Tensor, label: float) -> Tensor:
    """Element-wise max(x, 0) - x * label + log(1 + exp(-|x|))."""
    return softplus(logits) - logits * label


def lecam(real: Tensor, fake: Tensor, ema_real: Tensor, ema_fake: Tensor) -> Tensor:
    """relu(real - ema_fake)^2 + relu(ema_real - fake)^2 of mean logits, all scalars (Tseng et al. 2021)."""
    first, second = P.relu(real - ema_fake), P.relu(ema_real - fake)
    return first * first + second * second


class LeCamEMA:
    """Moving averages of the mean logits of real and reconstructed clips, float32 as upstream keeps them."""

    def __init__(self, real: float = 0.0, fake: float = 0.0, decay: float = 0.999) -> None:
        self.real, self.fake, self.decay = np.float32(real), np.float32(fake), decay

    def update(self, real: float, fake: float) -> None:
        keep, take = np.float32(self.decay), np.float32(1 - self.decay)
        self.real = self.real * keep + np.float32(real) * take
        self.fake = self.fake * keep + np.float32(fake) * take


def gradient_penalty(discriminate: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Mean over samples of (|d sum(logits) / d image| - 1)^2 (Gulrajani et al. 2017); differentiable itself."""
    gradients = ms.grad(lambda x: discriminate(x).sum())(images)
    rows = gradients.reshape(gradients.shape[0], -1)
    excess = P.sqrt((rows * rows).sum(-1)) - 1.0
    return (excess * excess).mean()


def adaptive_weight(nll_norm: float, generator_norm: float) -> float:
    """Factor that makes both losses pull alike at the last layer: the ratio of gradient norms (Esser et al. 2021)."""
    return float(np.clip(np.float32(nll_norm) / (np.float32(generator_norm) + _WEIGHT_EPS), 0.0, _LARGEST_WEIGHT))


def started(step: int, start: int) -> bool:
    """Whether adversarial losses count in ``step`` (from 0)."""
    return step >= start

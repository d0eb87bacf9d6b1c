"""Losses of autoencoder training. Upstream: opensora/models/vae/losses.py, branches opensora/v1.2 and main (2.0).

Clips are [B, C, T, H, W]; frames are folded into the batch, B*T of them, for what is told of frames. Element-wise
losses keep the perceptual distance of a frame in every element of it, as upstream adds them up.
"""

from __future__ import annotations

from dataclasses import dataclass

import mindspore as ms
from mindspore import Tensor
from mindspore import ops as P

from models.vae.autoencoder_kl import as_rows
from models.vae.distribution import mean_and_logvar


@dataclass(frozen=True)
class Losses20:
    """What version 2.0 tells, scalars: kl is weighted already, perceptual is not."""

    nll: Tensor
    kl: Tensor
    recon: Tensor
    perceptual: Tensor


def nll(video: Tensor, recon: Tensor, logvar: Tensor | float, distance: Tensor | None, weight: float) -> Tensor:
    """[B*T, C, H, W]: (|video - recon| + weight * distance) / exp(logvar) + logvar.

    distance: perceptual distance of each frame [B*T, 1, 1, 1], None for none.
    """
    loss = P.abs(as_rows(video) - as_rows(recon))
    if distance is not None:
        loss = loss + weight * distance
    if isinstance(logvar, Tensor):
        return loss / P.exp(logvar) + logvar
    return loss if logvar == 0 else loss / P.exp(Tensor(logvar, ms.float32)) + logvar


def per_clip(elements: Tensor, clips: int) -> Tensor:
    """Element-wise losses [B*T, C, H, W] -> [B]: the sum over each clip divided by its frames.

    Their mean over clips is upstream's sum over everything divided by B*T.
    """
    rows = elements.reshape(clips, -1)
    frames = elements.shape[0] // clips
    # A sum over an axis as a product: several times faster on CPU.
    return P.matmul(rows, P.ones((rows.shape[1], 1), rows.dtype)).reshape(clips) / frames


def loss_v1_2(elements: Tensor, nll_weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sum of element-wise losses / frames, without and with weights [B*T, 1, 1, 1]."""
    frames = elements.shape[0]
    plain = elements.sum() / frames
    return plain, plain if nll_weights is None else (nll_weights * elements).sum() / frames


def loss_v2_0(
    video: Tensor, recon: Tensor, logvar: Tensor, distance: Tensor, weight: float, kl: Tensor | None, kl_weight: float
) -> Losses20:
    """The four losses of version 2.0. kl: divergences by clip or frame, None without a posterior."""
    elements = nll(video, recon, logvar, distance, weight)
    frames, per_frame = elements.shape[0], elements[0].size
    return Losses20(
        nll=elements.sum() / frames,
        kl=Tensor(0.0, ms.float32) if kl is None else kl.sum() / kl.shape[0] * kl_weight,
        recon=P.abs(as_rows(video) - as_rows(recon)).sum() / frames,
        perceptual=distance.sum() / frames * per_frame,
    )


def divergence_between(moments: Tensor, others: Tensor) -> Tensor:
    """Kullback-Leibler divergence of one diagonal Gaussian from another, both moments [N, 2 C, ...] -> [N]."""
    (mean, logvar), (other_mean, other_logvar) = mean_and_logvar(moments), mean_and_logvar(others)
    distance = mean - other_mean
    terms = distance * distance / P.exp(other_logvar) + P.exp(logvar) / P.exp(other_logvar) - 1.0
    terms = terms - logvar + other_logvar
    return 0.5 * terms.reshape(terms.shape[0], -1).sum(-1)

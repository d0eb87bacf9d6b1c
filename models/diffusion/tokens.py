"""Losses on the tokens a rank holds, where the ranks of a group share those of every sample.

Values of latents and outputs of the network become [B, C, t, s, patch volume] of this rank's tokens: channels stay the
second axis, so whatever is computed value by value and channel by channel is computed as for whole latents.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Tensor
from mindspore import ops as P


def own_values(model: Any, x: Tensor) -> Tensor:
    """Latents [B, C, T, H, W] -> this rank's [B, C, t, s, volume]; zeros beyond the edges."""
    patches = model.sequence.split(model.x_embedder.patches(x))
    b, t, s, length = patches.shape
    channels = x.shape[1]
    return patches.reshape(b, t, s, channels, length // channels).transpose(0, 3, 1, 2, 4)


def own_outputs(model: Any, tokens: Tensor) -> Tensor:
    """The network's tokens [B, t, s, volume * channels] -> float32 [B, channels, t, s, volume]."""
    b, t, s, length = tokens.shape
    channels = model.out_channels
    values = tokens.astype(ms.float32).reshape(b, t, s, length // channels, channels)
    return values.transpose(0, 4, 1, 2, 3)


def shares(x: Tensor, x_mask: Tensor | None) -> Tensor:
    """How much every value of latents [B, C, T, H, W] counts in a sample's mean: float32 of that shape, sums of 1.

    x_mask bool [B, T]: only frames with True count.
    """
    b, c, frames, rows, columns = x.shape
    if x_mask is None:
        share = P.ones((b, 1, frames, 1, 1), ms.float32) / (c * frames * rows * columns)
    else:
        counts = x_mask.astype(ms.float32)
        share = (counts / counts.sum(-1, keepdims=True) / (c * rows * columns)).reshape(b, 1, frames, 1, 1)
    return P.broadcast_to(share, (b, c, frames, rows, columns))

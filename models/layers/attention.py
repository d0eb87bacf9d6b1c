"""Self attention with optional q/k norm and rotary positions, and cross attention to text.

Upstream: opensora/models/layers/blocks.py (v1.2). Rotary embedding: Su et al. 2021, pairs of neighbouring channels.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn
from mindspore import ops as P

from models import ops
from models.layers.linear import Linear, RMSNorm, parameter
from models.layers.tables import rotation_matrix


class RotaryTable(nn.Cell):
    """``freqs`` [dim / 2], fixed -> cosines and sines, each float32 [length, dim], for positions 0 .. length - 1."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.freqs = parameter(dim // 2, trainable=False)

    def construct(self, length: int) -> tuple[Tensor, Tensor]:
        positions = P.arange(0, length, 1).astype(ms.float32)
        angles = positions.reshape(-1, 1) * self.freqs.reshape(1, -1)
        half = angles.shape[-1]
        angles = P.broadcast_to(angles.reshape(length, half, 1), (length, half, 2)).reshape(length, 2 * half)
        return P.cos(angles), P.sin(angles)


class Rotate(nn.Cell):
    """x [..., N, dim] turned by the angles of a :class:`RotaryTable`; computed in float32, returned in x's dtype.

    Neighbours are exchanged by a product with a matrix of 0, 1 and -1: exact, and one fast kernel on every device.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.swap = Tensor(rotation_matrix(dim))
        self._linear = ops.linear

    def construct(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        wide = x.astype(ms.float32)
        return (wide * cos + self._linear(wide, self.swap, None) * sin).astype(x.dtype)


class Attention(nn.Cell):
    """Multi-head self attention over x [B, N, dim]; q and k are normalised first and rotated after.

    norm_last: rotate first, then normalise (the order of v1.1). ``heads_exchange``: None, or how ranks that hold parts
    of the sequence come to hold the whole of it for some of the heads (:class:`models.parallel.sequence.Ulysses`).
    """

    def __init__(
        self, dim: int, heads: int, qk_norm: bool = False, rope: bool = False, norm_last: bool = False
    ) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = dim // heads
        self.scale = self.head_dim**-0.5
        self.norm_last = norm_last
        self.qkv = Linear(dim, 3 * dim)
        self.q_norm = RMSNorm(self.head_dim) if qk_norm else None
        self.k_norm = RMSNorm(self.head_dim) if qk_norm else None
        self.rotate = Rotate(self.head_dim) if rope else None
        self.proj = Linear(dim, dim)
        self.heads_exchange = None
        self._attention = ops.attention

    def _positioned(self, x: Tensor, norm: nn.Cell | None, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        if norm is not None and not self.norm_last:
            x = norm(x)
        if self.rotate is not None:
            x = self.rotate(x, rope[0], rope[1])
        if norm is not None and self.norm_last:
            x = norm(x)
        return x

    def construct(self, x: Tensor, rope: tuple[Tensor, Tensor] | None = None) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x)
        if self.heads_exchange is not None:
            qkv = self.heads_exchange.sequence_to_heads(qkv.reshape(b, n, 3, self.heads, self.head_dim))
        heads = qkv.size // (b * qkv.shape[1] * 3 * self.head_dim)
        qkv = qkv.reshape(b, qkv.shape[1], 3 * heads, self.head_dim).transpose(0, 2, 1, 3)
        q, k, v = P.split(qkv, heads, axis=1)
        q = self._positioned(q, self.q_norm, rope)
        k = self._positioned(k, self.k_norm, rope)
        out = self._attention(q, k, v, None, self.scale).transpose(0, 2, 1, 3)
        if self.heads_exchange is not None:
            out = self.heads_exchange.heads_to_sequence(out)
        return self.proj(out.reshape(b, n, c))


class CrossAttention(nn.Cell):
    """x [B, N, dim] attends to text [B or 1, L, dim]; ``bias`` [B, 1, 1, L] hides tokens, None hides none.

    A text of batch 1 is shared by all samples: packed tokens, of which ``bias`` shows each sample its own.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = dim // heads
        self.scale = self.head_dim**-0.5
        self.q_linear = Linear(dim, dim)
        self.kv_linear = Linear(dim, 2 * dim)
        self.proj = Linear(dim, dim)
        self.heads_exchange = None
        self._attention = ops.attention

    def construct(self, x: Tensor, text: Tensor, bias: Tensor | None = None) -> Tensor:
        b, n, c = x.shape
        tokens = text.shape[1]
        q = self.q_linear(x).reshape(b, n, self.heads, self.head_dim)
        kv = self.kv_linear(text).reshape(-1, tokens, 2 * self.heads, self.head_dim)
        heads = self.heads
        if self.heads_exchange is not None:
            # Queries do not see each other: rows of padding among them harm nobody.
            q = self.heads_exchange.queries_to_heads(q)
            heads = q.shape[2]
            kv = self.heads_exchange.own_heads(kv.reshape(-1, tokens, 2, self.heads, self.head_dim))
            kv = kv.reshape(-1, tokens, 2 * heads, self.head_dim)
        kv = kv.transpose(0, 2, 1, 3)
        if text.shape[0] != b:
            kv = P.broadcast_to(kv, (b, 2 * heads, tokens, self.head_dim))
        k, v = P.split(kv, heads, axis=1)
        out = self._attention(q.transpose(0, 2, 1, 3), k, v, bias, self.scale).transpose(0, 2, 1, 3)
        if self.heads_exchange is not None:
            out = self.heads_exchange.heads_to_queries(out)
        return self.proj(out.reshape(b, n, c))


HIDDEN = -1e30  # added to a score: its weight becomes exactly zero


def mask_bias(mask: Tensor) -> Tensor:
    """Text mask [B, L], nonzero = visible -> float32 [B, 1, 1, L] of 0 and a very negative number."""
    hidden = (mask == 0).astype(ms.float32) * HIDDEN
    return hidden.reshape(mask.shape[0], 1, 1, mask.shape[1])


def packed_mask(lengths: Tensor, total: int) -> Tensor:
    """Token counts [B] of packed texts -> bool [B, total]: which of the packed tokens belong to which sample."""
    counts = lengths.astype(ms.float32).reshape(-1, 1)
    samples = counts.shape[0]
    order = P.arange(0, samples, 1)
    before = (order.reshape(1, -1) < order.reshape(-1, 1)).astype(ms.float32)
    start = P.matmul(before, counts)
    position = P.arange(0, total, 1).astype(ms.float32).reshape(1, -1)
    return P.logical_and(position >= start, position < start + counts)

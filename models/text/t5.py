"""The encoder of T5 v1.1 (Raffel et al. 2020, arXiv:1910.10683; Shazeer 2020, arXiv:2002.05202 for the gated MLP).

Parameter names are those of Hugging Face's ``T5EncoderModel``. Before each sub-layer and at the end a root mean square
norm with scale only; attention without biases and without the 1/sqrt(d) scaling, plus a bias by relative position that
block 0 owns and all blocks share; ``wo(gelu_tanh(wi_0 x) * wi_1 x)``; residuals. The residual stream is float32
whatever the weights are: large T5s overflow float16 there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore import ops as P

from models import ops
from models.layers.attention import mask_bias

# Name of a weight and its shape -> its values.
Read = Callable[[str, tuple[int, ...]], np.ndarray]


@dataclass(frozen=True)
class T5Shape:
    """Sizes of an encoder; names are those of Hugging Face's ``T5Config``."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6


def position_buckets(offsets: np.ndarray, buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of every offset key - query, int64 of the same shape.

    Half of the buckets are for keys after the query. Of each half the first half holds one offset each, the second
    grows with the logarithm of the offset up to ``max_distance``. Arithmetic in float32, as in the original.
    """
    half = buckets // 2
    exact = half // 2
    distance = np.abs(offsets)
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    grown = ratio / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + grown.astype(np.int64), half - 1)
    found: np.ndarray = np.where(offsets > 0, half, 0) + np.where(distance < exact, distance, far)
    return found


class Table(nn.Cell):
    """``weight`` [rows, width], of which rows are looked up."""

    def __init__(self, read: Read, name: str, rows: int, width: int, dtype: ms.Type) -> None:
        super().__init__()
        self.weight = _weight(read, f"{name}.weight", (rows, width), dtype)

    def construct(self, rows: Tensor) -> Tensor:
        return P.gather(self.weight, rows, 0)


class Projection(nn.Cell):
    """x [..., inputs] -> [..., outputs], without bias, in the dtype of ``weight`` [outputs, inputs]."""

    def __init__(self, read: Read, name: str, outputs: int, inputs: int, dtype: ms.Type) -> None:
        super().__init__()
        self.weight = _weight(read, f"{name}.weight", (outputs, inputs), dtype)
        self._linear = ops.linear

    def construct(self, x: Tensor) -> Tensor:
        return self._linear(x.astype(self.weight.dtype), self.weight, None)


class Norm(nn.Cell):
    """Root mean square norm over the last axis, with scale only."""

    def __init__(self, read: Read, name: str, shape: T5Shape) -> None:
        super().__init__()
        self.weight = _weight(read, f"{name}.weight", (shape.d_model,), ms.float32)
        self.eps = shape.layer_norm_epsilon
        self._rms_norm = ops.rms_norm

    def construct(self, x: Tensor) -> Tensor:
        return self._rms_norm(x, self.weight, self.eps)


class SelfAttention(nn.Cell):
    """x [B, N, d_model] -> [B, N, d_model]; bias float32 [B, heads, N, N] is added to the scores."""

    def __init__(self, read: Read, name: str, shape: T5Shape, dtype: ms.Type, owns_bias: bool) -> None:
        super().__init__()
        self.heads, self.head_dim = shape.num_heads, shape.d_kv
        inner = shape.num_heads * shape.d_kv
        self.q = Projection(read, f"{name}.q", inner, shape.d_model, dtype)
        self.k = Projection(read, f"{name}.k", inner, shape.d_model, dtype)
        self.v = Projection(read, f"{name}.v", inner, shape.d_model, dtype)
        self.o = Projection(read, f"{name}.o", shape.d_model, inner, dtype)
        if owns_bias:
            rows = shape.relative_attention_num_buckets
            self.relative_attention_bias = Table(read, f"{name}.relative_attention_bias", rows, self.heads, ms.float32)
        self._attention = ops.biased_attention

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, self.head_dim).transpose(0, 2, 1, 3)

    def construct(self, x: Tensor, bias: Tensor) -> Tensor:
        attended = self._attention(self._split(self.q(x)), self._split(self.k(x)), self._split(self.v(x)), bias)
        return self.o(attended.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[1], -1))


class GatedMlp(nn.Cell):
    """wo(gelu(wi_0 x) * wi_1 x). ``wo`` stays float32 where the others are float16: its sums overflow there."""

    def __init__(self, read: Read, name: str, shape: T5Shape, dtype: ms.Type) -> None:
        super().__init__()
        self.wi_0 = Projection(read, f"{name}.wi_0", shape.d_ff, shape.d_model, dtype)
        self.wi_1 = Projection(read, f"{name}.wi_1", shape.d_ff, shape.d_model, dtype)
        wide = ms.float32 if dtype == ms.float16 else dtype
        self.wo = Projection(read, f"{name}.wo", shape.d_model, shape.d_ff, wide)
        self._gelu = ops.gelu

    def construct(self, x: Tensor) -> Tensor:
        return self.wo(self._gelu(self.wi_0(x)) * self.wi_1(x))


class AttentionLayer(nn.Cell):
    """x + attention(norm(x))."""

    def __init__(self, read: Read, name: str, shape: T5Shape, dtype: ms.Type, owns_bias: bool) -> None:
        super().__init__()
        self.SelfAttention = SelfAttention(read, f"{name}.SelfAttention", shape, dtype, owns_bias)
        self.layer_norm = Norm(read, f"{name}.layer_norm", shape)

    def construct(self, x: Tensor, bias: Tensor) -> Tensor:
        return x + self.SelfAttention(self.layer_norm(x), bias).astype(ms.float32)


class MlpLayer(nn.Cell):
    """x + mlp(norm(x))."""

    def __init__(self, read: Read, name: str, shape: T5Shape, dtype: ms.Type) -> None:
        super().__init__()
        self.DenseReluDense = GatedMlp(read, f"{name}.DenseReluDense", shape, dtype)
        self.layer_norm = Norm(read, f"{name}.layer_norm", shape)

    def construct(self, x: Tensor) -> Tensor:
        return x + self.DenseReluDense(self.layer_norm(x)).astype(ms.float32)


class Block(nn.Cell):
    """``layer.0`` attends, ``layer.1`` is the MLP."""

    def __init__(self, read: Read, name: str, shape: T5Shape, dtype: ms.Type, first: bool) -> None:
        super().__init__()
        self.layer = nn.CellList(
            [
                AttentionLayer(read, f"{name}.layer.0", shape, dtype, first),
                MlpLayer(read, f"{name}.layer.1", shape, dtype),
            ]
        )

    def construct(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.layer[1](self.layer[0](x, bias))


class Stack(nn.Cell):
    """The blocks and the norm after them."""

    def __init__(self, read: Read, shape: T5Shape, dtype: ms.Type) -> None:
        super().__init__()
        self.shape = shape
        self.block = nn.CellList(
            [Block(read, f"encoder.block.{n}", shape, dtype, n == 0) for n in range(shape.num_layers)]
        )
        self.final_layer_norm = Norm(read, "encoder.final_layer_norm", shape)

    def position_bias(self, tokens: int) -> Tensor:
        """float32 [1, heads, N, N]: what every head adds to the score of a key at some offset."""
        places = np.arange(tokens)
        shape = self.shape
        buckets = position_buckets(
            places[None, :] - places[:, None],
            shape.relative_attention_num_buckets,
            shape.relative_attention_max_distance,
        )
        table = self.block[0].layer[0].SelfAttention.relative_attention_bias
        rows = table(Tensor(buckets.reshape(-1).astype(np.int32)))
        return rows.reshape(1, tokens, tokens, -1).transpose(0, 3, 1, 2)

    def states(self, embeddings: Tensor, mask: Tensor | None) -> list[Tensor]:
        """The embeddings and the state after each block, the last one normed: float32 [B, N, d_model] each."""
        x = embeddings.astype(ms.float32)
        bias = self._bias(x, mask)
        found = [x]
        for block in self.block:
            found.append(block(found[-1], bias))
        found[-1] = self.final_layer_norm(found[-1])
        return found

    def construct(self, embeddings: Tensor, mask: Tensor | None = None) -> Tensor:
        x = embeddings.astype(ms.float32)
        bias = self._bias(x, mask)
        for block in self.block:
            x = block(x, bias)
        return self.final_layer_norm(x)

    def _bias(self, x: Tensor, mask: Tensor | None) -> Tensor:
        batch, tokens, _ = x.shape
        bias = P.broadcast_to(self.position_bias(tokens), (batch, self.shape.num_heads, tokens, tokens))
        return bias if mask is None else bias + mask_bias(mask)


class T5Encoder(nn.Cell):
    """Token ids int32 [B, N] -> float32 [B, N, d_model]. mask [B, N]: 0 hides a token from the others; None none.

    Weights come from ``read`` one by one and are kept in ``dtype``, so that no second copy of them is ever made.
    """

    def __init__(self, shape: T5Shape, read: Read, dtype: ms.Type = ms.float32) -> None:
        super().__init__()
        self.shared = Table(read, "shared", shape.vocab_size, shape.d_model, dtype)
        self.encoder = Stack(read, shape, dtype)
        self.set_train(False)

    def construct(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.encoder(self.shared(tokens), mask)


def _weight(read: Read, name: str, shape: tuple[int, ...], dtype: ms.Type) -> Parameter:
    values = np.ascontiguousarray(read(name, shape))
    return Parameter(Tensor(values).astype(dtype), requires_grad=False)

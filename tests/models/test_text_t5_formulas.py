"""T5 of other shapes than the golden case's, against its formulas written out in float64."""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from models.text.t5 import T5Encoder, T5Shape, position_buckets

pytestmark = pytest.mark.train


def bucket(offset: int, count: int, most: int) -> int:
    half, distance = count // 2, abs(offset)
    exact = half // 2
    if distance >= exact:
        distance = min(
            half - 1, exact + int(math.log(distance / exact) / math.log(most / exact) * (half - exact) + 1e-6)
        )
    return distance + (half if offset > 0 else 0)


@pytest.mark.parametrize(("count", "most"), [(32, 128), (16, 64), (8, 20), (32, 256), (64, 100)])
def test_buckets(count: int, most: int) -> None:
    offsets = np.arange(-300, 301)
    expected = [bucket(int(offset), count, most) for offset in offsets]
    assert position_buckets(offsets, count, most).tolist() == expected


def expected_states(shape: T5Shape, state: dict[str, np.ndarray], ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    wide = {name: value.astype(np.float64) for name, value in state.items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + shape.layer_norm_epsilon) * wide[f"{name}.weight"]

    tokens = ids.shape[1]
    table = wide["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    counts = (shape.relative_attention_num_buckets, shape.relative_attention_max_distance)
    numbers = [[bucket(key - query, *counts) for key in range(tokens)] for query in range(tokens)]
    bias = table[numbers].transpose(2, 0, 1)[None] + np.where(mask == 0, -np.inf, 0.0)[:, None, None, :]
    x = wide["shared.weight"][ids]
    for layer in range(shape.num_layers):
        name = f"encoder.block.{layer}.layer"
        y = norm(x, f"{name}.0.layer_norm")
        q, k, v = (
            (y @ wide[f"{name}.0.SelfAttention.{key}.weight"].T)
            .reshape(*ids.shape, shape.num_heads, shape.d_kv)
            .transpose(0, 2, 1, 3)
            for key in "qkv"
        )
        scores = np.exp(q @ k.transpose(0, 1, 3, 2) + bias)
        out = (scores / scores.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(*ids.shape, -1)
        x = x + out @ wide[f"{name}.0.SelfAttention.o.weight"].T
        y = norm(x, f"{name}.1.layer_norm")
        gate, up = (y @ wide[f"{name}.1.DenseReluDense.wi_{number}.weight"].T for number in (0, 1))
        gelu = 0.5 * gate * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        x = x + (gelu * up) @ wide[f"{name}.1.DenseReluDense.wo.weight"].T
    return norm(x, "encoder.final_layer_norm")


@pytest.mark.parametrize(
    "shape",
    [
        T5Shape(50, 24, 8, 40, 3, 5, 16, 20, 1e-5),  # heads x d_kv is not d_model; few buckets; another epsilon
        T5Shape(40, 16, 4, 20, 1, 1),
    ],
)
def test_states(shape: T5Shape) -> None:
    random = np.random.default_rng(5)
    state: dict[str, np.ndarray] = {}

    def read(name: str, size: tuple[int, ...]) -> np.ndarray:
        state[name] = random.standard_normal(size, np.float32) * np.float32(0.3)
        return state[name]

    network = T5Encoder(shape, read)
    ids = random.integers(0, shape.vocab_size, (2, 30)).astype(np.int32)
    mask = np.ones((2, 30), np.int32)
    mask[1, 11:] = 0
    got = network(Tensor(ids), Tensor(mask)).asnumpy()
    expected = expected_states(shape, state, ids, mask)
    assert np.abs(got - expected).max() < 2e-5 * np.abs(expected).max()
    assert dict(network.parameters_and_names()).keys() == state.keys()


def test_half_precision_keeps_what_overflows_wide() -> None:
    shape = T5Shape(40, 16, 4, 20, 2, 4)
    state: dict[str, np.ndarray] = {}
    random = np.random.default_rng(6)

    def read(name: str, size: tuple[int, ...]) -> np.ndarray:
        if name not in state:
            # The sums of the last product pass what float16 holds.
            large = 2e5 if name.endswith("wo.weight") else 0.3
            state[name] = random.standard_normal(size, np.float32) * np.float32(large)
        return state[name]

    ids = random.integers(0, 40, (1, 9)).astype(np.int32)
    wide, half = (T5Encoder(shape, read, dtype) for dtype in (ms.float32, ms.float16))
    dtypes = {name.split(".")[-2]: param.dtype for name, param in half.parameters_and_names()}
    assert (dtypes["wo"], dtypes["wi_0"], dtypes["final_layer_norm"]) == (ms.float32, ms.float16, ms.float32)
    expected, got = (network(Tensor(ids)).asnumpy() for network in (wide, half))
    assert got.dtype == np.float32
    assert np.abs(got - expected).max() < 0.02 * np.abs(expected).max()
    states = [state.asnumpy() for state in half.encoder.states(half.shared(Tensor(ids)), None)]
    assert max(np.abs(state).max() for state in states) > 65504

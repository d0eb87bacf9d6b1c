"""Operators, tables and small layers against their formulas in double precision."""

from __future__ import annotations

import hashlib
import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from models import ops
from models.layers.attention import Attention, CrossAttention, RotaryTable, Rotate, mask_bias, packed_mask
from models.layers.embeddings import PatchEmbed3D, PositionTable2D, SizeEmbedder, zero_pad
from models.layers.tables import inverse_frequencies, rotation_matrix, timestep_frequencies
from models.ops import ascend, cpu
from models.rng import stream

pytestmark = pytest.mark.train


def values(*shape: int, name: str = "x") -> np.ndarray:
    return stream(0, name).standard_normal(shape).astype(np.float32)


def gelu(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def test_every_device_has_every_operator() -> None:
    assert sorted(cpu.__all__) == sorted(ascend.__all__) == sorted(ops.OPERATORS)
    assert ops.gelu is cpu.gelu
    with pytest.raises(AttributeError, match="no operator 'conv9'"):
        _ = ops.conv9


def test_gelu_and_its_gradient() -> None:
    x = np.concatenate([values(500) * 3, [0.0, -30.0, 30.0, -200.0]]).astype(np.float32)
    np.testing.assert_allclose(ops.gelu(Tensor(x)).asnumpy(), gelu(x), atol=2e-6, rtol=3e-7)
    slope = (gelu(x.astype(np.float64) + 1e-5) - gelu(x.astype(np.float64) - 1e-5)) / 2e-5
    computed = ms.grad(lambda z: ops.gelu(z).sum())(Tensor(x)).asnumpy()
    np.testing.assert_allclose(computed, slope, atol=2e-6)


def test_silu() -> None:
    x = np.concatenate([values(300) * 4, [-100.0, 100.0]]).astype(np.float32)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(ops.silu(Tensor(x)).asnumpy(), wide / (1 + np.exp(-wide)), rtol=2e-7, atol=1e-30)


def test_norm_modulate() -> None:
    x, shift, scale = values(2, 3, 5, 8), values(2, 3, 1, 8, name="shift"), values(2, 3, 1, 8, name="scale")
    wide = x.astype(np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    out = ops.norm_modulate(Tensor(x), Tensor(shift), Tensor(scale)).asnumpy()
    np.testing.assert_allclose(out, normed * (1 + scale) + shift, atol=2e-6)


def test_linear_flattens_and_keeps_leading_axes() -> None:
    x, w, b = values(2, 3, 4), values(5, 4, name="w"), values(5, name="b")
    out = ops.linear(Tensor(x), Tensor(w), Tensor(b)).asnumpy()
    np.testing.assert_allclose(out, x @ w.T + b, atol=1e-6)
    assert ops.linear(Tensor(x.astype(np.float16)), Tensor(w), None).dtype == ms.float16


def test_attention_with_hidden_keys() -> None:
    q, k, v = values(2, 3, 5, 4), values(2, 3, 6, 4, name="k"), values(2, 3, 6, 4, name="v")
    mask = np.array([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    out = ops.attention(Tensor(q), Tensor(k), Tensor(v), mask_bias(Tensor(mask)), 0.5).asnumpy()
    scores = np.einsum("bhnd,bhmd->bhnm", q.astype(np.float64), k) * 0.5
    scores = np.where(mask[:, None, None] == 0, -np.inf, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(out, weights @ v, atol=2e-6)


def test_packed_mask() -> None:
    mask = packed_mask(Tensor(np.array([2, 0, 3])), 5).asnumpy()
    np.testing.assert_array_equal(mask, [[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 1, 1, 1]])


def test_shared_text_serves_every_sample() -> None:
    layer = CrossAttention(8, 2)
    for param in layer.get_parameters():
        param.set_data(Tensor(values(*param.shape, name=param.name)))
    x, text = Tensor(values(3, 4, 8)), values(1, 5, 8, name="text")
    shared = layer(x, Tensor(text)).asnumpy()
    np.testing.assert_allclose(shared, layer(x, Tensor(np.repeat(text, 3, 0))).asnumpy(), atol=1e-6)


def test_rotation_keeps_lengths_and_depends_on_distance() -> None:
    table = RotaryTable(8)
    table.freqs.set_data(Tensor(inverse_frequencies(4)))
    cos, sin = table(6)
    q = np.repeat(values(1, 1, 1, 8), 6, axis=2)
    turned = Rotate(8)(Tensor(q), cos, sin).asnumpy()
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(q, axis=-1), rtol=1e-6)
    products = turned[0, 0] @ turned[0, 0].T
    assert products[0, 2] == pytest.approx(products[3, 5], rel=1e-5)
    np.testing.assert_array_equal(np.arange(4) @ rotation_matrix(4).T, [-1, 0, -3, 2])


def test_normalisation_comes_before_rotation() -> None:
    first, last = (Attention(8, 2, qk_norm=True, rope=True, norm_last=order) for order in (False, True))
    for layer in (first, last):
        for param in layer.get_parameters():
            param.set_data(Tensor(values(*param.shape, name=param.name)))
    table = RotaryTable(4)
    table.freqs.set_data(Tensor(inverse_frequencies(2)))
    x = Tensor(values(1, 3, 8))
    assert np.abs(first(x, table(3)).asnumpy() - last(x, table(3)).asnumpy()).max() > 1e-4


def test_patches_are_a_strided_convolution() -> None:
    layer = PatchEmbed3D((2, 2, 3), 2, 5)
    for param in layer.get_parameters():
        param.set_data(Tensor(values(*param.shape, name=param.name)))
    x = values(1, 2, 3, 4, 7)
    padded = np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 0), (0, 2)))
    weight, bias = layer.proj.weight.asnumpy(), layer.proj.bias.asnumpy()
    expected = [
        (padded[0, :, t : t + 2, h : h + 2, w : w + 3] * weight).sum((1, 2, 3, 4)) + bias
        for t in (0, 2) for h in (0, 2) for w in (0, 3, 6)
    ]  # fmt: skip
    np.testing.assert_allclose(layer(Tensor(x)).asnumpy()[0], expected, atol=1e-5)


def test_zero_pad() -> None:
    np.testing.assert_array_equal(zero_pad(Tensor(np.ones((1, 3), np.float32)), 1, 2).asnumpy(), [[1, 1, 1, 0]])
    x = Tensor(np.ones((1, 4), np.float32))
    assert zero_pad(x, 1, 2) is x


def test_position_table() -> None:
    table = PositionTable2D(8)(2, 3, Tensor(np.float32(2.0)), 3).asnumpy()
    assert table.shape == (1, 6, 8)
    angles = np.outer(np.arange(3) / 2 * (3 / 3), inverse_frequencies(2))
    np.testing.assert_allclose(table[0, :3, :4], np.concatenate([np.sin(angles), np.cos(angles)], -1), atol=1e-6)
    rows = np.outer(np.arange(2) / 2 * (3 / 2), inverse_frequencies(2))
    np.testing.assert_allclose(table[0, ::3, 4:], np.concatenate([np.sin(rows), np.cos(rows)], -1), atol=1e-6)


def test_size_embedder_repeats_rows() -> None:
    layer = SizeEmbedder(6)
    for param in layer.get_parameters():
        param.set_data(Tensor(values(*param.shape, name=param.name)))
    out = layer(Tensor(np.array([24.0, 30.0], np.float32)), 4).asnumpy()
    np.testing.assert_array_equal(out[:2], out[2:])
    assert not np.array_equal(out[0], out[1])


def test_frequencies() -> None:
    table = timestep_frequencies(128)
    exact = np.exp(-np.log(10000.0) * np.arange(128) / 128)
    assert (table[0], table.dtype) == (1.0, np.float32)
    np.testing.assert_allclose(table, exact, rtol=1e-6)
    np.testing.assert_allclose(inverse_frequencies(4), 10000.0 ** -(np.arange(4) / 4), rtol=1e-6)


def test_streams_are_named_not_numbered() -> None:
    first = stream(7, "noise", 3, "a").standard_normal(4)
    np.testing.assert_array_equal(first, stream(7, "noise", 3, "a").standard_normal(4))
    others = [stream(8, "noise", 3, "a"), stream(7, "drop", 3, "a"), stream(7, "noise", 4, "a"), stream(7, "noise", 3)]
    others += [stream(7, "noise", "3", "a"), stream(7, "noise", 3, "a", 0)]
    draws = {tuple(generator.standard_normal(4)) for generator in others} | {tuple(first)}
    assert len(draws) == 7
    digest = hashlib.sha256(stream(42, "noise", 0).bytes(64)).hexdigest()
    assert digest[:16] == "436f9a986ada140e"

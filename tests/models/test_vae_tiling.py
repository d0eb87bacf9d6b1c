"""Tiles put together again: exact for what looks at single pixels, and inside tiles for what looks around."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from mindspore import Tensor
from mindspore import ops as P

from models.config import AutoencoderConfig, TilingConfig
from models.rng import stream
from models.vae import build_network, wrap
from models.vae.tiling import Tiles
from tests.models.test_vae import TINY, clip

pytestmark = pytest.mark.train


def values(*shape: int) -> Tensor:
    return Tensor(stream(4, "tiles", *shape).standard_normal(shape).astype(np.float32))


def pooled(x: Tensor) -> Tensor:
    """Means of 2 x 2 pixels; a last odd one is cut, as autoencoders do."""
    *rest, height, width = x.shape
    x = x[..., : height // 2 * 2, : width // 2 * 2]
    return x.reshape(*rest, height // 2, 2, width // 2, 2).mean(-1).mean(-2)


def doubled(x: Tensor) -> Tensor:
    *rest, height, width = x.shape
    x = P.broadcast_to(x.reshape(*rest, height, 1, width, 1), (*rest, height, 2, width, 2))
    return x.reshape(*rest, 2 * height, 2 * width)


@pytest.mark.parametrize("sides", [(9, 16), (4, 23)])
@pytest.mark.parametrize("tiles", [Tiles(4, 1), Tiles(5, 2)])
@pytest.mark.parametrize(("code", "down", "up"), [(pooled, 2, 1), (doubled, 1, 2), (P.tanh, 1, 1)])
def test_pixelwise_coding_is_the_same_in_tiles(
    code: Callable[[Tensor], Tensor], down: int, up: int, tiles: Tiles, sides: tuple[int, int]
) -> None:
    x = values(2, 3, *sides)
    np.testing.assert_allclose(tiles.code(code, x, down, up).asnumpy(), code(x).asnumpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("length", range(1, 60))
def test_tiles_cover_every_side_with_their_overlap(length: int) -> None:
    tiles = Tiles(8, 3)
    starts = tiles.starts(length)
    assert starts[0] == 0 and starts[-1] + tiles.size >= length and len(set(starts)) == len(starts)
    assert all(0 < later - sooner <= tiles.size - tiles.overlap for sooner, later in zip(starts, starts[1:]))  # noqa: B905, RUF007
    total = np.zeros(length * 2)
    for start in starts:
        weights = tiles.weights(start, length, 2)
        assert (weights > 0).all() and weights.max() <= 1
        total[2 * start : 2 * start + weights.size] += weights
    assert (total > 0).all()
    assert total[0] == total[-1] == 1  # the edges of the frame are the edge tiles' own


def test_blending_is_linear_over_the_overlap() -> None:
    """A tile of zeros beside one of ones: a straight ramp between."""
    seen: list[float] = []

    def number(x: Tensor) -> Tensor:
        seen.append(float(len(seen)))
        return P.full_like(x, seen[-1])

    row = Tiles(8, 4).code(number, values(1, 1, 8, 12), 1, 1).asnumpy()[0, 0]
    expected = [0, 0, 0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1, 1, 1]
    assert seen == [0, 1]
    np.testing.assert_allclose(row, np.tile(expected, (8, 1)), atol=1e-6)


def test_what_looks_around_is_the_same_inside_of_tiles() -> None:
    weight = values(2, 2, 3, 3)
    x = values(1, 2, 20, 20)

    def convolved(part: Tensor) -> Tensor:
        return P.conv2d(part, weight, pad_mode="same")

    tiled, whole = Tiles(12, 4).code(convolved, x, 1, 1).asnumpy(), convolved(x).asnumpy()
    inside = np.r_[0:8, 12:20]  # what only one tile covers
    np.testing.assert_allclose(tiled[..., inside[:, None], inside], whole[..., inside[:, None], inside], atol=1e-5)
    assert np.abs(tiled - whole).max() > 1e-3


def test_autoencoders_in_tiles() -> None:
    """To the bit the same where one tile is enough; else of the same size, and equal only about."""

    def made(tiling: TilingConfig | None) -> list[np.ndarray]:
        config = AutoencoderConfig.model_validate({**TINY, "tiling": tiling})
        autoencoder = wrap(config, build_network(config, seed=3))
        z = autoencoder.encode(x)
        return [z.asnumpy(), autoencoder.decode(z, 1).asnumpy()]

    x = clip(1, 20, 8)
    whole, one, many = (made(tiling) for tiling in (None, TilingConfig(size=20), TilingConfig(size=12)))
    assert all(np.array_equal(a, b) for a, b in zip(whole, one, strict=True))
    for tiled, untiled in zip(many, whole, strict=True):
        assert tiled.shape == untiled.shape and np.isfinite(tiled).all()
        assert 1e-6 < np.abs(tiled - untiled).mean() < untiled.std()


def test_sizes_of_tiles() -> None:
    assert Tiles.of(TilingConfig(), 8) == Tiles(64, 16)
    assert Tiles.of(TilingConfig(size=1, overlap=0.5), 8) == Tiles(2, 1)

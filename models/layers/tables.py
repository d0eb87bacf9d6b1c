"""Fixed tables: frequencies of the sine features and of the rotary embedding, as PyTorch's float32 gives them."""

from __future__ import annotations

import numpy as np

# The original evaluates exp in float32 with Intel MKL, whose result for these entries of the 128-entry table is not the
# correctly rounded one but one unit above. At timestep 1000 one unit moves a feature by 3e-5, and published weights
# have only ever seen the features of the original's table.
_MKL_ROUNDED_UP = {128: (13, 44, 119)}


def timestep_frequencies(half: int, max_period: float = 10000.0) -> np.ndarray:
    """float32 [half]: exp(-ln(max_period) k / half). Upstream: opensora/models/layers/blocks.py, timestep_embedding."""
    exponents = np.float32(-np.log(max_period)) * np.arange(half, dtype=np.float32) / np.float32(half)
    table = np.exp(exponents.astype(np.float64)).astype(np.float32)
    if max_period == 10000.0:
        for index in _MKL_ROUNDED_UP.get(half, ()):
            table[index] = np.nextafter(table[index], np.float32(1))
    return table


def inverse_frequencies(half: int) -> np.ndarray:
    """float32 [half]: 10000 ** -(k / half), as used by the 2-D position table and the rotary embedding."""
    exponents = np.arange(half, dtype=np.float32) / np.float32(half)
    return np.float32(1) / np.power(10000.0, exponents.astype(np.float64)).astype(np.float32)


def rotation_matrix(dim: int) -> np.ndarray:
    """float32 [dim, dim]: x @ R.T turns the pairs (x0, x1) of neighbours into (-x1, x0)."""
    matrix = np.zeros((dim, dim), np.float32)
    even = np.arange(0, dim, 2)
    matrix[even, even + 1] = -1.0
    matrix[even + 1, even] = 1.0
    return matrix


def sincos_table(dim: int, positions: np.ndarray) -> np.ndarray:
    """float64 [positions, dim]: sines, then cosines, of positions * 10000 ** -(k / (dim / 2)). ``dim`` is even.

    Upstream: opensora/models/layers/blocks.py (v1.0), get_1d_sincos_pos_embed_from_grid.
    """
    if dim % 2:
        raise ValueError(f"a sine-cosine table has an even number of channels, not {dim}")
    frequencies = 1.0 / 10000 ** (np.arange(dim // 2, dtype=np.float64) / (dim / 2.0))
    angles = np.outer(np.asarray(positions).reshape(-1), frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def sincos_table_1d(dim: int, length: int, scale: float = 1.0) -> np.ndarray:
    """float64 [length, dim]: the temporal table of STDiT (v1.0) for positions 0 .. length - 1, divided by ``scale``."""
    return sincos_table(dim, np.arange(length) / scale)


def sincos_table_2d(dim: int, grid: tuple[int, int], scale: float = 1.0, base: int | None = None) -> np.ndarray:
    """float64 [rows * columns, dim] in row-major order: the spatial table of STDiT (v1.0).

    The first half of the channels belongs to the column, the second to the row. Positions are divided by ``scale`` and
    spread so that ``base`` positions cover each side, in float32 as upstream.
    """
    sides = [np.arange(count, dtype=np.float32) / np.float32(scale) for count in grid]
    if base is not None:
        sides = [side * np.float32(base / count) for side, count in zip(sides, grid, strict=True)]
    rows, columns = np.meshgrid(sides[0], sides[1], indexing="ij")
    return np.concatenate([sincos_table(dim // 2, columns), sincos_table(dim // 2, rows)], axis=1)

"""How near a reconstruction is to its clip: PSNR and SSIM of frames. numpy only.

Two definitions of SSIM are in use and both are here: the one of Open-Sora's evaluation (eval/vae/cal_ssim.py, branch
opensora/v1.2; Wang et al. 2004: Gaussian window, weighted moments) and scikit-image's default (uniform window, unbiased
moments), with which the MindSpore reference reports its numbers. PSNR is the same in both.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

SsimForm = Literal["gaussian", "uniform"]

# PSNR of frames that do not differ. Upstream: eval/vae/cal_psnr.py.
IDENTICAL_PSNR = 100.0
_SAME = 1e-10
_GAUSSIAN_WINDOW, _GAUSSIAN_SIGMA = 11, 1.5
_UNIFORM_WINDOW = 7
_K1, _K2 = 0.01, 0.03


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float64 [...] of frames [..., C, H, W] in [0, 1]: 20 log10(1 / sqrt(mse)), 100 where they are the same."""
    _check(a, b)
    difference = a.astype(np.float64) - b.astype(np.float64)
    mse = (difference * difference).mean(axis=(-3, -2, -1))
    same = mse < _SAME
    return np.where(same, IDENTICAL_PSNR, -10.0 * np.log10(np.where(same, 1.0, mse)))


def ssim(a: np.ndarray, b: np.ndarray, form: SsimForm = "gaussian") -> np.ndarray:
    """float64 [...] of frames [..., C, H, W] in [0, 1]: mean over channels and all whole windows.

    gaussian: 11 x 11, sigma 1.5, population moments. uniform: 7 x 7, unbiased moments. ValueError for frames smaller
    than the window.
    """
    _check(a, b)
    window = _gaussian() if form == "gaussian" else np.full(_UNIFORM_WINDOW, 1.0 / _UNIFORM_WINDOW)
    if min(a.shape[-2:]) < len(window):
        raise ValueError(f"frames of {a.shape[-2]}x{a.shape[-1]} are smaller than SSIM's window of {len(window)}")
    unbiased = 1.0 if form == "gaussian" else _UNIFORM_WINDOW**2 / (_UNIFORM_WINDOW**2 - 1)
    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = _filtered(x, window), _filtered(y, window)
    var_x = unbiased * (_filtered(x * x, window) - mean_x * mean_x)
    var_y = unbiased * (_filtered(y * y, window) - mean_y * mean_y)
    covariance = unbiased * (_filtered(x * y, window) - mean_x * mean_y)
    c1, c2 = _K1**2, _K2**2
    top = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    bottom = (mean_x * mean_x + mean_y * mean_y + c1) * (var_x + var_y + c2)
    found: np.ndarray = (top / bottom).mean(axis=(-3, -2, -1))
    return found


def as_unit(x: np.ndarray) -> np.ndarray:
    """Frames in [-1, 1], clipped, to [0, 1]."""
    return np.clip(x.astype(np.float64) * 0.5 + 0.5, 0.0, 1.0)


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape or a.ndim < 3:
        raise ValueError(f"frames must be [..., C, H, W] of one shape, got {list(a.shape)} and {list(b.shape)}")


def _gaussian() -> np.ndarray:
    offsets = np.arange(_GAUSSIAN_WINDOW) - (_GAUSSIAN_WINDOW - 1) / 2
    weights = np.exp(-(offsets**2) / (2 * _GAUSSIAN_SIGMA**2))
    return np.asarray(weights / weights.sum())


def _filtered(x: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Separable correlation over the last two axes, whole windows only."""
    for axis in (-2, -1):
        size = x.shape[axis] - len(window) + 1
        parts = (weight * _slice(x, axis, start, size) for start, weight in enumerate(window))
        x = np.add.reduce(list(parts))
    return x


def _slice(x: np.ndarray, axis: int, start: int, size: int) -> np.ndarray:
    part = slice(start, start + size)
    return x[..., part, :] if axis == -2 else x[..., part]

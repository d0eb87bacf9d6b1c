"""PSNR and SSIM of recorded clips [B, T, C, H, W] in [0, 1]."""

from __future__ import annotations

import numpy as np

from models.vae.metrics import psnr, ssim
from tests.parity.cases import Arrays, Case


def run(case: Case) -> Arrays:
    """All recorded tensors of the case, computed."""
    a, b = case.inputs["a"], case.inputs["b"]
    computed: Arrays = {"psnr_identical": psnr(a, a).mean(0), "ssim_identical": ssim(a, a).mean(0)}
    for name, each in (("psnr", psnr(a, b)), ("ssim", ssim(a, b))):
        computed |= {
            f"{name}_each": each,
            f"{name}_per_frame_index": each.mean(0),
            f"{name}_std": each.std(0),
            f"{name}_mean": np.asarray(each.mean(0).mean()),
        }
    return computed

"""Tables of a Gaussian diffusion with discrete steps: noise schedules, respacing, posterior, training by speed.

Upstream: opensora/schedulers/iddpm/ (v1.0 and v1.1), after improved-diffusion (Nichol and Dhariwal 2021). Step 0 is the
cleanest. v1.0 keeps its tables in float64; v1.1 casts the betas to float32 and computes everything from them, which
moves the first steps by up to 2e-4 of their value: weights of v1.1 have only ever seen those tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

SCHEDULES = ("linear", "squaredcos_cap_v2")


def named_betas(name: str, steps: int) -> np.ndarray:
    """float64 [steps]: ``linear`` (Ho et al. 2020, scaled to any number of steps) or ``squaredcos_cap_v2``."""
    if name == "linear":
        scale = 1000 / steps
        return np.linspace(scale * 0.0001, scale * 0.02, steps, dtype=np.float64)
    if name == "squaredcos_cap_v2":
        alpha_bar = [math.cos((step / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for step in range(steps + 1)]
        return np.array([min(1 - after / before, 0.999) for before, after in pairwise(alpha_bar)])
    raise ValueError(f"unknown noise schedule {name!r}; known: {', '.join(SCHEDULES)}")


def kept_steps(steps: int, respacing: str | Sequence[int]) -> list[int]:
    """Which of ``steps`` steps are kept, in order.

    respacing: ``ddim25`` keeps 25 at one whole stride. ``10,15,20`` (or the numbers) keeps 10 of the first third, 15 of
    the second, 20 of the last, evenly spaced with both ends. ValueError where that many do not exist.
    """
    if isinstance(respacing, str) and respacing.startswith("ddim"):
        wanted = _counts(respacing.removeprefix("ddim"), respacing)[0]
        for stride in range(1, steps):
            kept = range(0, steps, stride)
            if len(kept) == wanted:
                return list(kept)
        raise ValueError(f"{steps} diffusion steps cannot be cut to exactly {wanted} with a whole stride")
    counts = _counts(respacing, respacing) if isinstance(respacing, str) else list(respacing)
    size, extra = divmod(steps, len(counts))
    found: set[int] = set()
    start = 0
    for section, count in enumerate(counts):
        length = size + (section < extra)
        if length < count:
            raise ValueError(f"a section of {length} diffusion steps cannot be cut to {count}")
        gap = (length - 1) / (count - 1) if count > 1 else 1.0
        place = 0.0
        for _ in range(count):
            found.add(start + round(place))
            place += gap  # summed up as upstream: the rounding error of the sum decides ties
        start += length
    if not found:
        raise ValueError(f"respacing {respacing!r} keeps no step")
    return sorted(found)


def _counts(text: str, respacing: str) -> list[int]:
    try:
        return [int(count) for count in text.split(",")]
    except ValueError:
        raise ValueError(f"respacing {respacing!r} is neither numbers of steps nor ddim and one number") from None


def respaced_betas(betas: np.ndarray, kept: Sequence[int]) -> np.ndarray:
    """float64 [len(kept)]: betas of the process that visits only the steps ``kept``."""
    alphas_cumprod = np.cumprod(1.0 - betas)[list(kept)]
    respaced: np.ndarray = 1.0 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1])
    return respaced


@dataclass(frozen=True)
class Tables:
    """All tables [steps] of a process; their names are upstream's."""

    betas: np.ndarray
    alphas_cumprod: np.ndarray
    alphas_cumprod_prev: np.ndarray
    alphas_cumprod_next: np.ndarray
    sqrt_alphas_cumprod: np.ndarray
    sqrt_one_minus_alphas_cumprod: np.ndarray
    log_one_minus_alphas_cumprod: np.ndarray
    sqrt_recip_alphas_cumprod: np.ndarray
    sqrt_recipm1_alphas_cumprod: np.ndarray
    posterior_variance: np.ndarray
    posterior_log_variance_clipped: np.ndarray
    posterior_mean_coef1: np.ndarray
    posterior_mean_coef2: np.ndarray


def diffusion_tables(betas: np.ndarray, precision: str = "float64") -> Tables:
    """The tables of ``betas``, computed in ``precision`` (``float64`` as v1.0, ``float32`` as v1.1).

    ValueError for betas outside 0 to 1, which the linear schedule has below 21 steps.
    """
    if not ((betas > 0) & (betas < 1)).all():
        raise ValueError(f"noise of {len(betas)} diffusion steps is not between 0 and 1: use more steps, and respacing")
    dtype = np.dtype(precision)
    betas = betas.astype(dtype)
    one = dtype.type(1)
    alphas = one - betas
    # PyTorch accumulates a float32 product in float64 and rounds every entry.
    alphas_cumprod = np.cumprod(alphas, dtype=np.float64).astype(dtype)
    previous = np.append(one, alphas_cumprod[:-1])
    noise = one - alphas_cumprod
    variance = betas * (one - previous) / noise
    # The variance of step 0 is 0: its logarithm is that of step 1, and of the only step that of its beta.
    clipped = np.append(variance[1], variance[1:]) if len(betas) > 1 else betas
    return Tables(
        betas=betas,
        alphas_cumprod=alphas_cumprod,
        alphas_cumprod_prev=previous,
        alphas_cumprod_next=np.append(alphas_cumprod[1:], dtype.type(0)),
        sqrt_alphas_cumprod=np.sqrt(alphas_cumprod),
        sqrt_one_minus_alphas_cumprod=np.sqrt(noise),
        log_one_minus_alphas_cumprod=np.log(noise),
        sqrt_recip_alphas_cumprod=np.sqrt(one / alphas_cumprod),
        sqrt_recipm1_alphas_cumprod=np.sqrt(one / alphas_cumprod - one),
        posterior_variance=variance,
        posterior_log_variance_clipped=np.log(clipped),
        posterior_mean_coef1=betas * np.sqrt(previous) / noise,
        posterior_mean_coef2=(one - previous) * np.sqrt(alphas) / noise,
    )


@dataclass(frozen=True)
class SpeedSampling:
    """Which steps the variant ``iddpm-speed`` trains on, and how much their errors weigh.

    ``probabilities`` and ``weights`` [steps]; from step ``meaningful_steps`` on the process hardly changes. Upstream:
    opensora/schedulers/iddpm/speed.py (SpeeD, Wang et al. 2024; weights of P2, Choi et al. 2022).
    """

    probabilities: np.ndarray
    weights: np.ndarray
    meaningful_steps: int

    @staticmethod
    def of(tables: Tables) -> SpeedSampling:
        slope = np.gradient(tables.sqrt_one_minus_alphas_cumprod)
        one = tables.betas.dtype.type(1)
        likely = np.tanh((slope - slope.dtype.type(1e-4)) * slope.dtype.type(1e6)) + slope.dtype.type(1.5)
        signal_to_noise = one / (one - tables.alphas_cumprod) - one
        return SpeedSampling(
            probabilities=likely / likely.sum(),
            weights=one / (one + signal_to_noise),
            meaningful_steps=int(np.argmax(slope < 5e-5)) + 1,
        )

    def timesteps(self, uniforms: np.ndarray, count: int) -> np.ndarray:
        """int64 [count] steps from ``uniforms`` [count // 2 + 1] in [0, 1): each drawn step, then its mirror images.

        A step before ``meaningful_steps`` is mirrored within these, a later one to its distance past them.
        """
        uniforms = np.asarray(uniforms, np.float64)
        if uniforms.shape != (count // 2 + 1,):
            raise ValueError(f"{count} steps are drawn from {count // 2 + 1} uniform numbers, not {uniforms.size}")
        edges = np.cumsum(self.probabilities, dtype=np.float64)
        drawn = np.minimum(np.searchsorted(edges / edges[-1], uniforms, side="right"), len(edges) - 1)
        mirrored = np.minimum(np.abs(drawn - self.meaningful_steps), len(edges) - 1)
        steps: np.ndarray = np.concatenate([drawn, mirrored])[:count].astype(np.int64)
        return steps

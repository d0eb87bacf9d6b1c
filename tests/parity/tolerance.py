"""How far a number may be from the recorded one.

Where ``tolerances_v1x.json`` lies beside the case folder and knows the tensor, its ``abs_tol`` decides; where the case
itself says how precise float32 is (README_B.md), its ``suggested_rel_tol`` times the largest value. Otherwise the
bound is ten times the float32 error that the golden README measured for the worst tensor of such a case, relative to
the tensor's largest value; scalar losses are absolute there, with a floor of 1e-6.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FILE = "tolerances_v1x.json"


@dataclass(frozen=True)
class Measured:
    """Float32 errors of the README's table: relative for outputs and gradients, absolute for scalar losses.

    ``large_losses``: relative error of losses far above 1, where the absolute one is theirs.
    """

    outputs: float
    gradients: float
    losses: float
    large_losses: float = 0.0


EXACT = ("transforms", "buckets", "masks_prompts", "text_cleaning")

# README.md of the golden data, "Accuracy of float32, measured", columns 2-4; the larger of rows of the same kind.
README = {
    "stdit": Measured(5e-7, 1e-6, 2e-8),
    "stdit3": Measured(4e-7, 9e-7, 2e-8),
    "rflow": Measured(9e-6, 5e-7, 6e-7),
    "vae2d": Measured(1e-6, 3e-6, 1e-9),
    "vae_temporal": Measured(1e-6, 2e-6, 0.0),
    "vae_pipeline": Measured(3e-6, 4e-6, 5e-9),
    "layers": Measured(4e-7, 4e-7, 0.0),
    "trace": Measured(2e-5, 1e-6, 3e-7),
    # The 3e-4 there is that of the KL losses, which are around 5e2.
    "iddpm": Measured(8e-7, 4e-6, 5e-6, large_losses=6e-7),
    "sincos": Measured(0.0, 0.0, 0.0),
} | dict.fromkeys(EXACT, Measured(0.0, 0.0, 0.0))
# README_B.md: no tensor needs a tighter bound than 2e-5 of its largest value, and none counts as smaller than 1e-6.
UNMEASURED = Measured(2e-6, 2e-6, 2e-6)
SMALLEST = 1e-6
FACTOR = 10.0
FLOOR = 1e-6


@dataclass(frozen=True)
class Bound:
    absolute: float
    second_half: bool  # the first half of the tensor has no true gradient: noise that Adam turns into steps


class Tolerances:
    """Bounds for one case."""

    def __init__(
        self, kind: str, case_path: Path, case_name: str | None, precision: dict[str, Any] | None = None
    ) -> None:
        """precision: what config.json says of float tensors by name; a case that has it needs no row in ``README``."""
        self.precision = precision or {}
        self.measured = README.get(kind, UNMEASURED)
        self.exact = kind in EXACT
        self.table, self.source = _table(case_path, case_name)
        if self.precision and not self.table:
            self.source = "precision measured in config.json"

    def bound(self, key: str, reference: np.ndarray) -> Bound:
        entry = self.table.get(key)
        undetermined = key.endswith("cross_attn.kv_linear.bias")
        own = self.precision.get(key)
        if entry is None and own is not None:
            largest = float(np.max(np.abs(reference), initial=0.0))
            return Bound(float(own["suggested_rel_tol"]) * max(largest, SMALLEST), False)
        if entry is not None:
            return Bound(float(entry["abs_tol"]), bool(entry.get("ignore_first_half", False)))
        return Bound(self._fallback(key, reference), undetermined)

    def _fallback(self, key: str, reference: np.ndarray) -> float:
        if self.exact or not np.issubdtype(reference.dtype, np.floating):
            return 0.0
        largest = float(np.max(np.abs(reference), initial=0.0))
        if reference.ndim == 0 or key.endswith("/loss"):
            return max(
                FACTOR * self.measured.losses, max(FACTOR * self.measured.large_losses, FLOOR) * max(largest, 1.0)
            )
        gradient = any(part.endswith(("grad", "grad_in")) for part in key.split("/"))
        error = self.measured.gradients if gradient else self.measured.outputs
        return max(FACTOR * error, FLOOR) * largest


def _table(case_path: Path, case_name: str | None) -> tuple[dict[str, dict[str, Any]], str]:
    path = case_path.resolve().parent / FILE
    if path.exists():
        tables = json.loads(path.read_text(encoding="utf-8"))
        for name in (case_path.resolve().name, case_name):
            if name in tables:
                return tables[name], FILE
    return {}, "float32 errors of the golden README"

"""Differences between computed and recorded tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.parity.cases import Arrays
from tests.parity.tolerance import Tolerances


def compare(
    computed: Arrays, recorded: Arrays, tolerances: Tolerances, slack: Arrays | None = None
) -> dict[str, dict[str, Any]]:
    """Per recorded tensor: max_abs, max_rel (of the tensor's largest value), tol, ok, and a problem where there is one.

    slack: what single entries may differ beyond the tolerance; ``undetermined`` counts those that needed it.
    """
    slack = slack or {}
    return {
        key: _difference(computed.get(key), reference, key, tolerances, slack.get(key))
        for key, reference in recorded.items()
    }


def _difference(
    value: np.ndarray | None, reference: np.ndarray, key: str, tolerances: Tolerances, slack: np.ndarray | None
) -> dict[str, Any]:
    bound = tolerances.bound(key, reference)
    row: dict[str, Any] = {"max_abs": None, "max_rel": None, "tol": bound.absolute, "ok": False}
    if value is None:
        return row | {"problem": "not computed"}
    value = np.asarray(value)
    if value.shape != reference.shape:
        return row | {"problem": f"shape {list(value.shape)}, recorded {list(reference.shape)}"}
    if bound.second_half:
        half = len(reference) // 2
        value, reference = value[half:], reference[half:]
        slack = None if slack is None else slack[half:]
        row["entries"] = "second half"
    difference = np.abs(value.astype(np.float64) - reference.astype(np.float64))
    if not np.all(np.isfinite(difference)):
        return row | {"problem": "not finite"}
    largest = float(np.max(np.abs(reference.astype(np.float64)), initial=0.0))
    row["max_abs"] = float(np.max(difference, initial=0.0))
    row["max_rel"] = row["max_abs"] / largest if largest else (0.0 if row["max_abs"] == 0 else None)
    over = difference > bound.absolute
    if slack is not None and over.any():
        row["undetermined"] = int((over & (difference <= bound.absolute + slack)).sum())
        over &= difference > bound.absolute + slack
    row["ok"] = not over.any()
    return row


def summary(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Verdict and extremes over all tensors of a case; ``worst`` is nearest to (or furthest over) its tolerance."""

    def used(row: dict[str, Any]) -> float:
        if row["max_abs"] is None:
            return float("inf")
        return row["max_abs"] / row["tol"] if row["tol"] else (0.0 if row["ok"] else float("inf"))

    worst = max(rows, key=lambda key: used(rows[key]))
    return {
        "verdict": "pass" if all(row["ok"] for row in rows.values()) else "fail",
        "max_abs": max((row["max_abs"] or 0.0) for row in rows.values()),
        "max_rel": max((row["max_rel"] or 0.0) for row in rows.values()),
        "worst": worst,
        "failed": [key for key, row in rows.items() if not row["ok"]],
    }

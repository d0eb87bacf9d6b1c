"""Differences between computed and recorded texts, tables and decisions. They have to be equal.

A recorded ``{"error": name}`` says that the original raised there: ours has to raise too, by whatever name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_ERRORS = (ValueError, TypeError, LookupError)
_MOST_ROWS = 32


class Missing:
    """What was not computed."""

    def __repr__(self) -> str:
        return "nothing"


def attempt(compute: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The result, or ``{"error": …}`` where it raises what a wrong input raises."""
    try:
        return compute(*arguments, **options)
    except _ERRORS as error:
        return {"error": str(error)}


def compare_tables(
    computed: Mapping[str, Any], recorded: Mapping[str, Any], rounded: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Per recorded entry: max_abs, max_rel, tol, ok, number of values, of differing ones, and the first of them.

    rounded: beginnings of the names of entries whose numbers may be off -> by how much.
    """
    rows = {}
    for key, reference in recorded.items():
        value = computed.get(key, Missing())
        tolerance = next((bound for start, bound in rounded.items() if key.startswith(start)), 0.0)
        if _opens(reference) and isinstance(value, Mapping):
            for name, part in reference.items():
                rows[f"outputs.json/{key}/{name}"] = _row(value.get(name, Missing()), part, tolerance)
        else:
            rows[f"outputs.json/{key}"] = _row(value, reference, tolerance)
    return rows


def _opens(reference: Any) -> bool:
    """Whether the parts of an entry deserve lines of their own."""
    if not isinstance(reference, dict) or len(reference) > _MOST_ROWS:
        return False
    return all(isinstance(part, dict | list) for part in reference.values())


def _row(value: Any, reference: Any, tolerance: float) -> dict[str, Any]:
    found = _Difference(tolerance)
    found.look(value, reference, "")
    ok = not found.differing
    row: dict[str, Any] = {"max_abs": 0.0 if ok else None, "max_rel": 0.0 if ok else None, "tol": tolerance, "ok": ok}
    row |= {"values": found.values, "differing": found.differing}
    return row if ok else row | {"problem": found.first}


class _Difference:
    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self.values = self.differing = 0
        self.first = ""

    def look(self, value: Any, reference: Any, place: str) -> None:
        if isinstance(reference, dict) and set(reference) == {"error"}:
            self._count(isinstance(value, dict) and set(value) == {"error"}, value, reference, place)
        elif isinstance(reference, dict) and isinstance(value, Mapping):
            for key in [*reference, *(key for key in value if key not in reference)]:
                self.look(value.get(key, Missing()), reference.get(key, Missing()), f"{place}/{key}")
        elif isinstance(reference, list) and isinstance(value, list | tuple):
            if len(value) != len(reference):
                self._count(False, f"{len(value)} entries", f"{len(reference)} entries", place)
            for index, (ours, theirs) in enumerate(zip(value, reference, strict=False)):
                self.look(ours, theirs, f"{place}/{index}")
        else:
            self._count(self._equal(value, reference), value, reference, place)

    def _equal(self, value: Any, reference: Any) -> bool:
        if self.tolerance and isinstance(reference, float) and isinstance(value, int | float):
            return abs(value - reference) <= self.tolerance
        return bool(value == reference)

    def _count(self, equal: bool, value: Any, reference: Any, place: str) -> None:
        self.values += 1
        if not equal:
            self.differing += 1
            self.first = self.first or f"{place or 'value'}: {value!r}, recorded {reference!r}"[:300]

"""A drill's verdicts as people read them."""

from __future__ import annotations

from collections.abc import Sequence

from ostrain.drill.verdict import Verdict
from ostrain.talk import table

HEADERS = ("FAULT", "SEED", "DETECTED", "RECOVERED", "STEPS LOST", "LOG LOST/DOUBLED", "NAMED", "LOSSES", "LEFT", "")


def line(verdict: Verdict) -> str:
    """One case in one line, with what is not as it should be."""
    if verdict.cannot:
        return f"{verdict.fault}: cannot be rehearsed here: {verdict.cannot}"
    parts = [f"{verdict.fault} seed {verdict.seed}: {'as it should be' if verdict.good else 'NOT as it should be'}"]
    if verdict.detected_in is not None:
        parts.append(f"detected in {verdict.detected_in:.1f} s ({verdict.reason}, {verdict.named or 'nobody named'})")
    if verdict.recovered_in is not None:
        parts.append(f"recovered in {verdict.recovered_in:.1f} s")
    if not verdict.restarts and verdict.good:
        parts.append("ridden out without a restart")
    parts.append(f"{verdict.seconds:.0f} s in all")
    return ", ".join(parts) + "".join(f"\n    {problem}" for problem in verdict.problems)


def summary(verdicts: Sequence[Verdict]) -> str:
    """All cases as a table, then the worst times, then what is not as it should be."""
    text = table([_row(one) for one in verdicts], HEADERS)
    ran = [one for one in verdicts if not one.cannot]
    bad = [one for one in ran if not one.good]
    lines = [text, ""]
    for name, values in (
        ("detected", [one.detected_in for one in ran]),
        ("recovered", [one.recovered_in for one in ran]),
    ):
        known = [value for value in values if value is not None]
        if known:
            lines.append(f"{name} in at most {max(known):.1f} s, {sorted(known)[len(known) // 2]:.1f} s as a rule")
    lines.append(f"{len(ran) - len(bad)} of {len(ran)} cases as they should be")
    if len(ran) < len(verdicts):
        lines.append(f"{len(verdicts) - len(ran)} could not be rehearsed here")
    return "\n".join(lines)


def _row(one: Verdict) -> list[str]:
    if one.cannot:
        return [one.fault, str(one.seed), *["-"] * 7, "cannot be rehearsed here"]
    return [
        one.fault,
        str(one.seed),
        _seconds(one.detected_in),
        _seconds(one.recovered_in) if one.restarts else "no restart",
        "-" if one.steps_lost is None else str(one.steps_lost),
        f"{one.log_lost}/{one.log_doubled}",
        one.named or "-",
        one.losses or "-",
        str(one.processes_left),
        "ok" if one.good else "NOT OK",
    ]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"

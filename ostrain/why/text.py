"""The verdict and the timeline as people read them."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ostrain.logs import printable
from ostrain.states import REASONS
from ostrain.status import RunStatus
from ostrain.talk import table
from ostrain.why.codes import Code
from ostrain.why.evidence import Evidence
from ostrain.why.stamps import Level
from ostrain.why.timeline import Moment
from ostrain.why.verdict import Verdict, advice

_WIDTH = 160


def report(
    status: RunStatus, evidence: Evidence, moments: Sequence[Moment], verdict: Verdict, *, shown: int, wide: bool
) -> str:
    """Everything `ostrain why` says. shown: moments of the timeline at most; wide: lines in their full length."""
    parts = [_heading(status, evidence.attempt), _first(verdict, status, evidence), _others(verdict), _slow(verdict)]
    parts += [_timeline(moments, verdict, shown, wide), _clocks(evidence), _missing(evidence)]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _heading(status: RunStatus, attempt: int) -> list[str]:
    meaning = REASONS[status.reason].meaning if status.reason in REASONS else ""
    if attempt != status.attempt:
        return [f"{status.run_id}  attempt {attempt}; now {status.state.value} in attempt {status.attempt}"]
    return [f"{status.run_id}  {status.state.value}  {status.reason}: {meaning} (attempt {status.attempt})"]


def stamp(moment: float | None) -> str:
    """Local time of this machine, with milliseconds."""
    if moment is None:
        return "?"
    return time.strftime("%H:%M:%S", time.localtime(moment)) + f".{int(moment * 1000) % 1000:03d}"


def _first(verdict: Verdict, status: RunStatus, evidence: Evidence) -> list[str]:
    first = verdict.first
    if first is None:
        if evidence.attempt != status.attempt or status.state.value == "FAILED":
            return ["no fault was found in what the nodes still have; `ostrain status` tells the run's own reason"]
        if status.state.value == "CANCELLED":
            return ["no fault: the run was cancelled, nothing had failed before"]
        return ["no fault: no worker ended badly, no log shows an error that ended one"]
    lines = [f"first fault: {_name(first)} at {stamp(first.time)}{' or later' if first.guessed else ''}"]
    lines.append(f"  {_clip(first.text, 400)}")
    lines += [f"  {_clip(one.text, 400)}" for one in _distinct(verdict)]
    lines += explanation(advice(verdict, status.reason if evidence.attempt == status.attempt else ""))
    lines += [
        f"  not certain: {_name(one)} told of a fault {abs((one.time or 0) - (first.time or 0)):.3f} s apart, "
        "within what is known of the clocks"
        for one in verdict.doubtful[:3]
    ]
    return lines


def explanation(code: Code | None) -> list[str]:
    """What a code means, as lines."""
    if code is None:
        return []
    lines = [f"  means: {code.meaning}" + (f" ({code.code})" if code.code else "")]
    lines += [f"  cause: {code.cause}"] if code.cause else []
    return [*lines, f"  fix:   {code.fix}"]


def _distinct(verdict: Verdict) -> list[Moment]:
    """What else that rank said, without repeating itself: at most four."""
    seen, kept = {verdict.first.text if verdict.first else ""}, []
    for one in verdict.related:
        if one.text not in seen:
            seen.add(one.text)
            kept.append(one)
    return kept[:4]


def _name(one: Moment) -> str:
    if not one.node:
        return "the supervisor"
    what = f"node {one.node}" if one.rank is None else f"rank {one.rank} on node {one.node}"
    return what + (f" ({one.where})" if one.where else "")


def _others(verdict: Verdict) -> list[str]:
    """Who failed because of it, by rank: of a thousand ranks one line."""
    if not verdict.consequences:
        return []
    first: dict[tuple[str, int | None], Moment] = {}
    for one in verdict.consequences:
        known = first.get((one.node, one.rank))
        if known is None or (known.code is None and one.code is not None):
            first[one.node, one.rank] = one
    rows = [
        [_after(one, verdict.first), one.who, one.code.code if one.code else "-", _clip(one.text, 90)]
        for one in list(first.values())[:8]
    ]
    left = len(first) - len(rows)
    lines = ["consequences:", *("  " + line for line in table(rows, ("AFTER", "WHO", "CODE", "WHAT")).splitlines())]
    return [*lines, f"  … and {left} more"] if left > 0 else lines


def _after(one: Moment, first: Moment | None) -> str:
    if one.time is None or first is None or first.time is None:
        return "?"
    return f"+{one.time - first.time:.3f}s"


def _slow(verdict: Verdict) -> list[str]:
    return [f"straggler: {one}" for one in verdict.stragglers[:5]]


def _timeline(moments: Sequence[Moment], verdict: Verdict, shown: int, wide: bool) -> list[str]:
    chosen = pick(moments, verdict, shown)
    if not chosen:
        return []
    lines = [f"timeline (times of this machine, {len(chosen)} of {len(moments)} moments):"]
    width = max(len(one.who) for one in chosen)
    for one in chosen:
        mark = ">" if one is verdict.first else "~" if one in verdict.consequences else " "
        grave = {Level.ERROR: "E", Level.WARNING: "W", Level.INFO: " "}[one.level]
        code = f"[{one.code.code}] " if one.code else ""
        text = f"{mark} {stamp(one.time):>12} {one.who:<{width}} {grave} {one.kind:<10} {code}{one.text}"
        lines.append(_clip(text, 10_000 if wide else _WIDTH))
    return [*lines, "  > the first fault   ~ a consequence"] if verdict.first else lines


def pick(moments: Sequence[Moment], verdict: Verdict, shown: int) -> list[Moment]:
    """The moments worth showing: those around the first fault, faults before context, in their order."""
    if len(moments) <= shown:
        return list(moments)
    anchor = verdict.first.time if verdict.first else None

    def worth(one: Moment) -> tuple[bool, bool, int, float]:
        away = abs((one.time or 0.0) - anchor) if anchor is not None and one.time is not None else 1e12
        return (one is not verdict.first, one not in verdict.related, -one.level, away)

    best = {id(one) for one in sorted(moments, key=worth)[:shown]}
    return [one for one in moments if id(one) in best]


def _clocks(evidence: Evidence) -> list[str]:
    """Clocks that are off by more than is known of them."""
    lines = []
    for name, clock in evidence.clocks.items():
        if clock.uncertainty is None:
            continue
        if abs(clock.offset) > max(0.1, 2 * clock.uncertainty):
            ahead = "ahead of" if clock.offset > 0 else "behind"
            lines.append(
                f"clock of {name}: {abs(clock.offset):.3f} s {ahead} this machine's "
                f"(±{clock.uncertainty:.3f} s), put right above"
            )
    if lines or not evidence.clocks:
        return lines
    known = [clock.uncertainty for clock in evidence.clocks.values() if clock.uncertainty is not None]
    return [f"clocks: all nodes agree with this machine's to ±{max(known):.3f} s or better"] if known else []


def _missing(evidence: Evidence) -> list[str]:
    lines = [
        f"node {name} does not answer, its logs are missing here: {why}" for name, why in evidence.unreachable.items()
    ]
    cut = [
        path for files in evidence.files.values() for path, log in files.items() if log.cut and path.startswith("logs")
    ]
    if cut:
        lines.append(f"of {len(cut)} long logs only the ends were read")
    return lines


def _clip(text: str, width: int) -> str:
    shown = printable(text.replace("\t", " ").split("\n")[0], styled=True)
    return shown if len(shown) <= width else shown[: width - 1] + "…"

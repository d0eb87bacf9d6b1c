"""Which fault was the first, and which only followed it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ostrain.states import REASONS
from ostrain.stragglers import Straggler
from ostrain.why.codes import Code
from ostrain.why.evidence import Evidence
from ostrain.why.stamps import Level
from ostrain.why.timeline import Moment

# Of one process's death several things tell: its log, its own report, the kernel, its end. Seconds they may be apart.
_SAME_DEATH = 30.0


@dataclass(frozen=True)
class Verdict:
    """What is concluded.

    first: the earliest fault of its own making, None where none was seen; code: what explains it, from whichever of
    its own rank's moments knows best. related: further moments of the same rank that belong to it. consequences: later
    faults of others. doubtful: others' faults so near that the clocks' uncertainty does not tell which came first.
    """

    first: Moment | None
    code: Code | None = None
    related: tuple[Moment, ...] = ()
    consequences: tuple[Moment, ...] = ()
    doubtful: tuple[Moment, ...] = ()
    stragglers: tuple[Straggler, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "first": self.first.as_dict() if self.first else None,
            "code": self.code.as_dict() if self.code else None,
            "related": [one.as_dict() for one in self.related],
            "consequences": [one.as_dict() for one in self.consequences],
            "doubtful": [one.as_dict() for one in self.doubtful],
            "stragglers": [one.as_dict() for one in self.stragglers],
        }


def conclude(evidence: Evidence, moments: Sequence[Moment], stragglers: Sequence[Straggler] = ()) -> Verdict:
    """The verdict on an attempt's moments. Pure."""
    faults = [one for one in moments if _is_fault(one)]
    first = _first(faults)
    if first is None:
        return Verdict(None, stragglers=tuple(stragglers))
    related = [one for one in faults if one is not first and _belongs(one, first)]
    others = [one for one in faults if one is not first and one not in related]
    doubtful = [one for one in _own_faults(others) if _within_doubt(evidence, first, one)]
    later = [one for one in others if one.time is None or first.time is None or one.time >= first.time]
    code = next((one.code for one in [first, *related] if one.code is not None and not one.code.consequence), None)
    return Verdict(
        first, code or first.code, tuple(related), tuple(later), tuple(doubtful), tuple(stragglers)
    )  # fmt: skip


def _is_fault(one: Moment) -> bool:
    return one.level is Level.ERROR and one.fatal and not (one.code is not None and one.code.benign)


def _follows(one: Moment) -> bool:
    """Whether a fault can only be somebody else's doing."""
    return one.by_agent or (one.code is not None and one.code.consequence)


def _first(faults: Sequence[Moment]) -> Moment | None:
    """The earliest fault of a rank's own making. What only follows another one counts if there is no other."""
    dated = [one for one in faults if one.time is not None and one.kind != "supervisor"]
    own = _own_faults(dated)
    effect = min((one.time or 0.0 for one in dated if _follows(one)), default=None)
    own = [one for one in own if effect is None or (one.time or 0.0) <= effect + _patience(one)]
    hang = next(
        (one for one in faults if one.kind == "supervisor" and "hung" in one.text and one.rank is not None), None
    )
    # Whoever ended after a hang was seen was ended because of it.
    if hang is not None and all((one.time or 0.0) >= (hang.time or 0.0) for one in own):
        return hang
    # A node that is gone leaves only followers, and the supervisor's word. What the agent ended on purpose, and nothing
    # else, means that somebody cancelled the run.
    seen = [one for one in faults if one.kind == "supervisor" and one.text.startswith("detected")]
    followers = [one for one in dated if not one.by_agent]
    for choice in (own, seen, followers, [one for one in faults if one.time is None]):
        if choice:
            first = min(choice, key=lambda one: (one.time is None, one.time or 0.0))
            return _best_witness([one for one in faults if _same_rank(one, first)], first)
    return None


def _own_faults(faults: Sequence[Moment]) -> list[Moment]:
    """Of every rank the first fault that is no consequence, where it has one."""
    groups: dict[tuple[str, int | None], list[Moment]] = {}
    for one in faults:
        if one.time is not None and one.kind != "supervisor":
            groups.setdefault((one.node, one.rank), []).append(one)
    found = [_own_making(group) for group in groups.values()]
    return [one for one in found if one is not None]


def _patience(one: Moment) -> float:
    """Seconds that a cause may be told of later than its effect: a bare end none to speak of, a known fault longer,
    for the driver writes its logs when it gets to it."""
    return _SAME_DEATH if one.code is not None and one.kind != "end" else 1.0


def _own_making(group: Sequence[Moment]) -> Moment | None:
    """Of one rank's faults in order, the first that is no consequence. After one that is, what has no name of its own
    (an exit code, an exception of the library) belongs to it; only a known cause does not."""
    blamed = False
    for one in group:
        if _follows(one):
            blamed = True
        elif not blamed or (one.code is not None and one.kind != "end"):
            return one
    return None


def _best_witness(group: Sequence[Moment], first: Moment) -> Moment:
    """Of the rank's moments within a second one that says why, rather than only that; none that merely follows."""
    near = [one for one in group if _apart(one, first) < 1.0 and (not _follows(one) or _follows(first))]
    return min(near, key=lambda one: (one.kind == "end", one.code is None, one.time or 0.0), default=first)


def _same_rank(one: Moment, other: Moment) -> bool:
    return one.node == other.node and one.rank == other.rank


def _apart(one: Moment, other: Moment) -> float:
    return abs((one.time or 0.0) - (other.time or 0.0))


def _belongs(one: Moment, first: Moment) -> bool:
    return _same_rank(one, first) and not one.by_agent and _apart(one, first) < _SAME_DEATH


def _within_doubt(evidence: Evidence, first: Moment, one: Moment) -> bool:
    """Whether another node's fault may have come first, for all one knows of their clocks."""
    if one.node == first.node or not one.node or not first.node or one.time is None:
        return False
    bounds = [evidence.clock(node).uncertainty for node in (first.node, one.node)]
    if any(bound is None for bound in bounds):
        return _apart(one, first) < 1.0
    return _apart(one, first) <= sum(bound or 0.0 for bound in bounds)


def advice(verdict: Verdict, reason: str) -> Code | None:
    """What to tell of the first fault: its code, or the meaning of the run's reason."""
    if verdict.code is not None:
        return verdict.code
    if reason in REASONS and verdict.first is not None:
        known = REASONS[reason]
        return Code(reason, "code", known.meaning, "", known.next_step)
    return None

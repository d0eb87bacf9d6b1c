"""What follows from a fault: a further attempt on which nodes, or none. Pure: no clock, no network, no store."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ostrain.supervisor.health import Fault
from ostrain.supervisor.layouts import Fit
from ostrain.supervisor.memory import Exclusion, Memory, PastFault
from ostrain.supervisor.policy import SAME_NODE, Action, LogFinding, rule_of
from ostrain.supervisor.settings import Settings

# Reasons after which a node that answers again is as good as any other.
_READMIT = frozenset(["node_lost", "node_rebooted", "hung", "agent_lost", "start_failed"])


@dataclass(frozen=True)
class Site:
    """The nodes as they are now.

    active: of the attempt that failed, in the order of their ranks. answering: those of all nodes that answer.
    spares: further nodes of the run, in the inventory's order. wanted: how many nodes the job asks for.
    fit: the best layout on so many nodes; None where none is legal or nodes cannot be changed.
    """

    active: tuple[str, ...]
    answering: frozenset[str]
    spares: tuple[str, ...]
    wanted: int
    fit: Callable[[int], Fit | None] = lambda count: None


@dataclass(frozen=True)
class Restart:
    """Start the next attempt. nodes: in the order of ranks; excluded: newly given up, with the reason; fit: the layout
    where it is not the job's own; wait: seconds before; awaited: nodes that have to answer again first."""

    nodes: tuple[str, ...]
    memory: Memory
    why: str
    wait: float = 0.0
    excluded: tuple[tuple[str, str], ...] = ()
    fit: Fit | None = None
    awaited: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """For the journal."""
        if self.fit is not None:
            return "shrink"
        return "exclude_node" if self.excluded else "restart"


@dataclass(frozen=True)
class GiveUp:
    """No further attempt."""

    memory: Memory
    why: str


def decide(
    memory: Memory,
    fault: Fault,
    attempt: int,
    trained: float,
    site: Site,
    settings: Settings,
    finding: LogFinding | None = None,
) -> Restart | GiveUp:
    """attempt: the one that failed; trained: seconds it trained; finding: a line in its logs that a log policy fits."""
    if trained >= settings.reset_after:
        memory = dataclasses.replace(memory, restarts=0, faults=())
    memory = dataclasses.replace(memory, faults=(*memory.faults, _past(fault, attempt)))
    why = _hopeless(memory, fault, settings, finding)
    if why:
        return _give_up(memory, fault, attempt, site, why)
    culprits = _culprits(memory, fault, site, finding)
    return _place(memory, fault, attempt, culprits, site, settings, strict=finding is not None)


def _past(fault: Fault, attempt: int) -> PastFault:
    return PastFault(attempt, fault.reason, fault.node, fault.step, fault.time)


def _hopeless(memory: Memory, fault: Fault, settings: Settings, finding: LogFinding | None) -> str:
    """Why no attempt can help; empty when one can."""
    rule = rule_of(fault.reason)
    if settings.max == 0:
        return "the job says restart.max: 0"
    if finding is not None and finding.policy.action == "stop":
        return finding.policy.message or f"a line in the logs fits {finding.policy.pattern!r}"
    if finding is None and rule.action is Action.NEVER:
        return f"{fault.reason} is never retried: {rule.why}"
    before = memory.faults[-2] if len(memory.faults) > 1 else None
    if rule.own_error and before is not None and (before.reason, before.step) == (fault.reason, fault.step):
        at = f"at step {fault.step}" if fault.step is not None else "before its first step"
        return f"{fault.reason} {at} for the second time in a row: no accident"
    if memory.restarts >= settings.max:
        return f"restart.max: {settings.max} restarts in a row are used up"
    return ""


def _culprits(memory: Memory, fault: Fault, site: Site, finding: LogFinding | None) -> dict[str, tuple[str, bool]]:
    """Nodes not to go on with: node -> (reason, whether it may come back)."""
    found = {name: ("node_lost", True) for name in site.active if name not in site.answering}
    if finding is not None and finding.node in site.active:
        found[finding.node] = (finding.policy.message or "log policy", False)
    elif fault.node in site.active and fault.node is not None:
        last = memory.faults[-SAME_NODE:]
        again = len(last) == SAME_NODE and all(one.node == fault.node for one in last)
        if rule_of(fault.reason).action is Action.EXCLUDE or again:
            found[fault.node] = (fault.reason, fault.reason in _READMIT)
    return found


def _place(
    memory: Memory,
    fault: Fault,
    attempt: int,
    culprits: dict[str, tuple[str, bool]],
    site: Site,
    settings: Settings,
    *,
    strict: bool,
) -> Restart | GiveUp:
    ready = [name for name in site.spares if name in site.answering and _usable(memory, name)]
    nodes, fit = _choose(site, culprits, ready)
    wait = settings.wait(memory.restarts)
    counted = dataclasses.replace(memory, restarts=memory.restarts + 1, total=memory.total + 1)
    if nodes:
        gone = {name: why for name, why in culprits.items() if name not in nodes}
        return _restart(counted, fault, attempt, nodes, fit, gone, wait)
    lost = tuple(name for name in culprits if name not in site.answering)
    if (strict or rule_of(fault.reason).action is Action.EXCLUDE) and not lost:
        why = f"{fault.reason}: {', '.join(culprits)} cannot be used, and no other node can take its place"
        return _give_up(memory, fault, attempt, site, why)
    # The same nodes again: those that do not answer have to come back first.
    why = f"{fault.reason}: the same nodes again" + (f", once {', '.join(lost)} answers" if lost else "")
    return Restart(site.active, counted, why, wait, awaited=lost)


def _give_up(memory: Memory, fault: Fault, attempt: int, site: Site, why: str) -> GiveUp:
    """Nodes that do not answer may still run the attempt: it is ended there when they do."""
    lost = [name for name in site.active if name not in site.answering]
    fences = {name: Exclusion(attempt + 1, "node_lost", fault.time, readmit=True) for name in lost}
    return GiveUp(dataclasses.replace(memory, gave_up=why, excluded={**memory.excluded, **fences}), why)


def _usable(memory: Memory, name: str) -> bool:
    return name not in memory.excluded or memory.excluded[name].usable


def _choose(
    site: Site, culprits: dict[str, tuple[str, bool]], ready: Sequence[str]
) -> tuple[tuple[str, ...], Fit | None]:
    """Nodes in the order of ranks and, where they are fewer than wanted, the layout; () where nothing fits.

    A spare takes the place, and so the ranks, of the node that it replaces; all others keep theirs.
    """
    kept = [name for name in site.active if name not in culprits]
    spare = iter(ready)
    if len(site.active) == site.wanted:
        slots = [name if name not in culprits else next(spare, "") for name in site.active]
    else:
        slots = kept
    chosen = [name for name in slots if name]
    chosen += [name for name in spare if name not in chosen][: max(0, site.wanted - len(chosen))]
    if len(chosen) == site.wanted:
        return tuple(chosen), None
    fit = site.fit(len(chosen)) if chosen else None
    return (tuple(chosen[: fit.shape.nodes]), fit) if fit is not None else ((), None)


def _restart(
    memory: Memory,
    fault: Fault,
    attempt: int,
    nodes: tuple[str, ...],
    fit: Fit | None,
    gone: dict[str, tuple[str, bool]],
    wait: float,
) -> Restart:
    excluded = {name: one for name, one in memory.excluded.items() if name not in nodes}
    for name, (reason, readmit) in gone.items():
        excluded[name] = Exclusion(attempt + 1, reason, fault.time, readmit)
    rule = rule_of(fault.reason)
    why = f"{fault.reason}: {rule.why}"
    if gone:
        why = f"{fault.reason}: without " + ", ".join(f"{name} ({reason})" for name, (reason, _) in gone.items())
    return Restart(
        nodes, dataclasses.replace(memory, excluded=excluded), why, wait,
        tuple((name, reason) for name, (reason, _) in gone.items()), fit,
    )  # fmt: skip

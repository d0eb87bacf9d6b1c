"""What the supervisor of a run remembers, as the store keeps it: the next one goes on from there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PastFault:
    """A fault of an earlier attempt, in short."""

    attempt: int
    reason: str
    node: str | None
    step: int | None
    time: float


@dataclass(frozen=True)
class Exclusion:
    """A node given up. attempt: the first one that goes on without it, its fence; closed: the node has answered since
    and runs nothing of an earlier attempt; readmit: it may then serve as a spare."""

    attempt: int
    reason: str
    time: float
    readmit: bool = False
    closed: bool = False

    @property
    def usable(self) -> bool:
        return self.readmit and self.closed


@dataclass(frozen=True)
class Memory:
    """restarts: in a row, the limit counts these; total: ever. faults: of the attempts in a row, oldest first.
    excluded: node -> why. gave_up: what the supervisor said when it stopped trying; empty while it tries."""

    restarts: int = 0
    total: int = 0
    faults: tuple[PastFault, ...] = ()
    excluded: dict[str, Exclusion] = field(default_factory=dict)
    gave_up: str = ""

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Memory:
        """From ``as_dict``; empty from ``{}``."""
        if not data:
            return cls()
        faults = tuple(PastFault(**one) for one in data.get("faults", ()))
        excluded = {name: Exclusion(**one) for name, one in data.get("excluded", {}).items()}
        return cls(data.get("restarts", 0), data.get("total", 0), faults, excluded, data.get("gave_up", ""))

    def with_closed(self, node: str) -> Memory:
        """The node's fence is closed."""
        closed = dataclasses.replace(self.excluded[node], closed=True)
        return dataclasses.replace(self, excluded={**self.excluded, node: closed})

    @property
    def open_fences(self) -> dict[str, int]:
        """Node -> its fence, for nodes that have not answered since they were given up."""
        return {name: one.attempt for name, one in self.excluded.items() if not one.closed}

"""From a run to what is known of its fault: evidence, timeline and verdict together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.backend import Backend, RunRef
from ostrain.status import RunStatus
from ostrain.store import Run
from ostrain.stragglers import stragglers
from ostrain.why.evidence import Evidence, gather, metrics_by_rank
from ostrain.why.timeline import Moment, build
from ostrain.why.verdict import Verdict, conclude


@dataclass(frozen=True)
class Analysis:
    """What `ostrain why` tells of one attempt."""

    status: RunStatus
    evidence: Evidence
    moments: Sequence[Moment]
    verdict: Verdict

    @property
    def blind(self) -> bool:
        """Whether no node could be asked."""
        return not self.evidence.statuses

    def text(self, *, shown: int = 30, wide: bool = False) -> str:
        from ostrain.why.text import report

        return report(self.status, self.evidence, self.moments, self.verdict, shown=shown, wide=wide)

    def as_dict(self) -> dict[str, Any]:
        clocks = {
            name: {"offset": clock.offset, "uncertainty": clock.uncertainty, "utc_offset": clock.utc_offset}
            for name, clock in self.evidence.clocks.items()
        }
        return {
            "attempt": self.evidence.attempt,
            "state": self.status.state.value,
            "reason": self.status.reason,
            **self.verdict.as_dict(),
            "timeline": [one.as_dict() for one in self.moments],
            "clocks": clocks,
            "unreachable": self.evidence.unreachable,
        }


def analyse(
    backend: Backend,
    run: Run,
    status: RunStatus,
    attempt: int,
    *,
    more: tuple[str, ...] = (),
    timeout: float = 30.0,
) -> Analysis:
    """Ask the nodes and conclude. Never raises because of a node. more: globs of further files to bring."""
    evidence = gather(backend, RunRef(run.run_id, run.plan), attempt, more=more, timeout=timeout)
    moments = build(evidence)
    slow = stragglers(metrics_by_rank(evidence))
    return Analysis(status, evidence, moments, conclude(evidence, moments, slow))

"""What the logs of a failed attempt say: the first line that a log policy fits."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cluster.backend import Backend, NodeError, RunRef
from ostrain.supervisor.bounded import each
from ostrain.supervisor.policy import LogFinding, LogPolicy, match_line

TAIL = 128 << 10  # bytes of each log that are looked at
FILES = 32  # logs of a node, at most
BOUND = 10.0


def find_evidence(
    backend: Backend, run: RunRef, attempt: int, nodes: Collection[str], policies: Sequence[LogPolicy]
) -> LogFinding | None:
    """Looks at the ends of the attempt's logs on the nodes that answer; the first policy (in their order) that fits.

    Takes at most ten seconds: a recovery does not wait for a log.
    """

    def one(name: str) -> list[LogFinding]:
        only = RunRef(run.run_id, run.plan.only({name}))
        listed = backend.files(only, (f"logs/attempt-{attempt}/*.log",), timeout=BOUND)[name]
        if isinstance(listed, NodeError):
            raise listed
        found = []
        for path, facts in sorted(listed.items())[:FILES]:
            offset = max(0, int(facts["size"]) - TAIL)
            text = backend.fetch(only, name, path, limit=TAIL, offset=offset).decode("utf-8", "replace")
            finding = match_line(policies, name, path, text.splitlines())
            if finding is not None:
                found.append(finding)
        return found

    if not policies:
        return None
    answers = each(nodes, one, BOUND)
    found = [finding for answer in answers.values() if not isinstance(answer, NodeError) for finding in answer]
    return min(found, key=lambda finding: policies.index(finding.policy), default=None)

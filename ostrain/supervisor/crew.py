"""What the parts of a supervisor share: store, backend, journal, memory, and whom they tell."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from cluster.backend import Backend, RunRef
from cluster.recovery import recovery_of
from ostrain.errors import OstrainError
from ostrain.states import ExitCode
from ostrain.store import Run, Store
from ostrain.supervisor.fencing import Fencer
from ostrain.supervisor.journal import Journal
from ostrain.supervisor.memory import Memory
from ostrain.supervisor.policy import LogFinding
from ostrain.supervisor.settings import Settings
from ostrain.watch import News, Notice


class Withdrawn(Exception):
    """Somebody else has taken the run, or wants it to end: the supervisor leaves it alone. The text says why."""


class Crew:
    """One supervisor of one run.

    secrets: values of the plan's secrets, in memory only. tell: receives news to show; may do nothing.
    """

    def __init__(
        self, store: Store, backend: Backend, run: Run, secrets: Mapping[str, str], tell: Callable[[News], None]
    ) -> None:
        recovery = recovery_of(backend)
        if recovery is None:
            raise OstrainError(
                f"runs of the backend {backend.name} are not supervised by ostrain",
                why="their scheduler places them, and starts them again by its own rules",
                exit_code=ExitCode.USAGE,
            )
        self.store, self.backend, self.secrets, self.tell = store, backend, secrets, tell
        self.recovery = recovery
        self.journal = Journal(run.run_id)
        self.settings = Settings.of(run.plan.restart)
        self.memory = Memory.of(run.supervision)
        self.fencer = Fencer(recovery)

    def note(self, attempt: int, event: str, text: str = "", **facts: Any) -> None:
        """An entry of the journal and, where there is a text, a notice."""
        self.journal.write(attempt, event, **facts)
        if text:
            self.tell(Notice(text))

    def remember(self, run: Run, memory: Memory) -> None:
        self.memory = memory
        self.store.remember(run.run_id, memory.as_dict())

    def still_ours(self, run: Run) -> None:
        """Raises Withdrawn when a person cancels the run, deletes it or has begun an attempt of their own."""
        try:
            current = self.store.get(run.run_id)
        except OstrainError:
            raise Withdrawn("the run was deleted") from None
        if current.wanted == "cancel":
            raise Withdrawn("the run is being cancelled")
        if current.attempt != run.attempt:
            raise Withdrawn(f"another client has begun attempt {current.attempt}")

    def taken(self, run: Run) -> bool:
        """Whether the run was deleted, or has a newer attempt than ours."""
        try:
            return self.store.get(run.run_id).attempt > run.attempt
        except OstrainError:
            return True

    def pause(self, run: Run, seconds: float) -> None:
        """Wait, but not for a run that is not ours any more."""
        deadline = time.monotonic() + seconds
        while True:
            self.still_ours(run)
            self.note_fences(run)
            left = deadline - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(0.5, left))

    def raise_fences(self, run: Run) -> None:
        """Keep trying to reach every node with an open fence."""
        for node, attempt in self.memory.open_fences.items():
            self.fencer.fence(RunRef(run.run_id, run.plan), node, attempt)

    def note_fences(self, run: Run) -> None:
        """Write down which fenced nodes have answered."""
        for node, attempt, report in self.fencer.closed():
            if node not in self.memory.excluded:
                continue
            self.remember(run, self.memory.with_closed(node))
            ended = len(report["killed"])
            detail = f"{ended} processes of attempts before {attempt} ended" if ended else "nothing of it was left"
            self.note(run.attempt, "fence_closed", f"node {node} answers again: {detail}", node=node, detail=detail)

    def tell_finding(self, run: Run, finding: LogFinding) -> None:
        """A line in the logs decides."""
        text = f"{finding.policy.message or finding.policy.pattern}: {finding.node}:{finding.path}: {finding.line}"
        self.tell(Notice(text))
        self.journal.write(run.attempt, "evidence", node=finding.node, detail=text, action=finding.policy.action)

    def tell_back(self, run: Run, names: Collection[str]) -> None:
        """Nodes that were waited for are back."""
        for name in names:
            self.note(run.attempt, "answers", f"node {name} answers again", node=name)

"""The supervisor of a run: watches an attempt until it ends or fails, and then starts the next one, or gives up.

It is never the parent of anything that trains. Killed, it loses nothing: what it knew is in the store and on the
nodes, and the next supervisor adopts the run.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping

from cluster.backend import Backend, Chunk, FollowLost, NodeNews, RunRef
from ostrain.errors import OstrainError
from ostrain.logs import LineAssembler
from ostrain.states import ExitCode, State
from ostrain.status import RunStatus, refresh
from ostrain.store import Run, Store
from ostrain.supervisor.crew import Crew, Withdrawn
from ostrain.supervisor.health import Ended, Fault, Health
from ostrain.supervisor.recover import recover
from ostrain.supervisor.streams import Streams
from ostrain.watch import PATTERNS, News, Notice, Phase, lines_of

LOOK = 0.3  # seconds between two verdicts
OURS = 1.0  # seconds between two looks into the store
CLAIM = 2.0  # seconds in which another supervisor may let go
FENCE_PATIENCE = 3600.0  # after the run's end: so long a fenced node is still waited for


def ignore(news: News) -> None:
    """For supervisors that nobody watches."""


def supervise(
    store: Store,
    backend: Backend,
    run: Run,
    *,
    secrets: Mapping[str, str],
    tell: Callable[[News], None] = ignore,
    patience: float = FENCE_PATIENCE,
) -> RunStatus:
    """Supervise a run to its end in this process; the status at the end. Takes over from a supervisor that died.

    patience: seconds after the end in which nodes that were given up are still waited for, to end what they may run.
    OstrainError where the job asks for no restarts, another supervisor lives, or the backend places nodes itself.
    """
    if not run.plan.restart.get("max"):
        raise OstrainError(
            f"run {run.run_id} is not to be supervised",
            why="its job says restart.max: 0, or nothing about restarts",
            next_step=f"ostrain resume {run.run_id} starts it again by hand",
            exit_code=ExitCode.USAGE,
        )
    adopted = bool(run.supervisor) and not run.supervised
    run = _claimed(store, run)
    crew = Crew(store, backend, run, secrets, tell)
    crew.note(run.attempt, "supervising", detail=f"pid {os.getpid()}" + (", after one that died" if adopted else ""))
    try:
        crew.raise_fences(run)
        told = _to_the_end(crew, run)
        _wait_for_fences(crew, dataclasses.replace(run, attempt=told.attempt), patience)
        return told
    finally:
        crew.fencer.stop()
        store.let_go(run.run_id)


def _claimed(store: Store, run: Run) -> Run:
    """The run as ours. A supervisor that only waits for fences of an attempt before lets go within a moment."""
    deadline = time.monotonic() + CLAIM
    while True:
        try:
            return store.supervise(run.run_id)
        except OstrainError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _to_the_end(crew: Crew, run: Run) -> RunStatus:
    cursors: dict[str, dict[str, int]] = {}
    try:
        while not _over(crew, run):
            outcome = _watch(crew, run, cursors)
            if isinstance(outcome, Ended):
                return _ended(crew, run, outcome)
            after = recover(crew, run, *outcome)
            if after is None:
                break
            run = after
    except Withdrawn as why:
        crew.note(run.attempt, "ended", f"supervision of {run.run_id} ends: {why}", detail=str(why))
        return _settled(crew, run)
    return RunStatus.from_run(crew.store.get(run.run_id))


def _over(crew: Crew, run: Run) -> bool:
    """Whether there is nothing left to watch or to start."""
    over = run.state in (State.SUCCEEDED, State.CANCELLED) or (run.state is State.FAILED and bool(crew.memory.gave_up))
    return over and run.settled


def _watch(crew: Crew, run: Run, cursors: dict[str, dict[str, int]]) -> Ended | tuple[Fault, Health]:
    """One attempt, until it ends or something is wrong with it."""
    health = Health([node.name for node in run.plan.nodes], run.attempt, crew.settings, time.monotonic())
    streams = Streams(crew.backend, RunRef(run.run_id, run.plan), PATTERNS, cursors)
    viewer = _Viewer(run.attempt, crew.tell)
    recovered, looked = not crew.memory.faults, 0.0
    try:
        while True:
            for item in streams.read(LOOK):
                now = time.monotonic()
                if isinstance(item, FollowLost):
                    health.silent(item.node, item.error.what)
                    continue
                if health.answered(item.node, now):
                    crew.note(run.attempt, "answers", f"node {item.node} answers again", node=item.node)
                if isinstance(item, NodeNews):
                    health.news(item.node, item.status, now, time.time())
                viewer.show(item)
            now = time.monotonic()
            for node, why in health.doubtful(now):
                crew.note(run.attempt, "unreachable", f"node {node} does not answer: {why}", node=node, detail=why)
            if not recovered and health.stepped:
                recovered = True
                crew.note(run.attempt, "recovered", detail=f"step {health.step}")
            if now - looked > OURS:
                looked = now
                crew.still_ours(run)
                crew.note_fences(run)
            verdict = health.verdict(now, time.time())
            if isinstance(verdict, Ended):
                return verdict
            if isinstance(verdict, Fault):
                return verdict, health
    finally:
        streams.close()


class _Viewer:
    """News for people out of what the nodes tell."""

    def __init__(self, attempt: int, tell: Callable[[News], None]) -> None:
        self._attempt, self._tell = attempt, tell
        self._assembler = LineAssembler()
        self._phase = ""

    def show(self, item: object) -> None:
        if isinstance(item, Chunk):
            for news in lines_of(self._assembler, item):
                self._tell(news)
        elif isinstance(item, NodeNews) and item.status.get("attempt") == self._attempt:
            beat = (item.status.get("heartbeat") or {}).get("0") or {}
            phase = str(beat.get("phase", ""))
            if phase not in ("", self._phase):
                self._phase = phase
                self._tell(Phase(phase))


def _ended(crew: Crew, run: Run, outcome: Ended) -> RunStatus:
    told = _settled(crew, run)
    crew.note(run.attempt, "ended", outcome.detail, reason=told.reason, detail=outcome.detail or told.state.value)
    return told


def _settled(crew: Crew, run: Run) -> RunStatus:
    """The status that stays. Agents that are still ending are given a moment."""
    deadline = time.monotonic() + 10.0
    while True:
        try:
            current = crew.store.get(run.run_id)
        except OstrainError:  # deleted meanwhile
            return RunStatus.from_run(run)
        told = RunStatus.from_run(current) if current.settled else refresh(crew.store, current, crew.backend)
        ending = told.state.final or current.wanted == "cancel"  # whoever cancels writes the outcome last
        if told.settled or time.monotonic() > deadline or not ending:
            return told
        time.sleep(0.3)


def _wait_for_fences(crew: Crew, run: Run, patience: float) -> None:
    """A node that was given up may still run its old attempt: it is ended when it answers."""
    if not crew.fencer.open:
        return
    names = ", ".join(crew.fencer.open)
    crew.tell(Notice(f"waiting for {names} to answer, to end what it may still run (Ctrl-C leaves it)"))
    deadline = time.monotonic() + patience
    while crew.fencer.open and time.monotonic() < deadline:
        time.sleep(0.5)
        crew.note_fences(run)
        if crew.taken(run):
            return
    crew.note_fences(run)

"""Following the files of a supervised run from attempt to attempt: each byte once, whatever nodes come and go."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from cluster.backend import Backend, FollowItem, FollowLost, NodeNews, RunRef
from ostrain.states import State
from ostrain.store import Run, Store, owner_alive
from ostrain.supervisor.streams import Streams

LOOK = 0.3  # seconds that a read of the streams waits
STORE = 1.0  # seconds between two looks into the store
ABANDONED = 10.0  # an attempt is over and nobody supervises the run: so long somebody may still take it
LATE = 5.0  # what nodes of the last attempt still say is waited for so long once there is a new one


def follow_attempts(
    store: Store, backend: Backend, run: Run, cursors: Mapping[str, Mapping[str, int]], patterns: tuple[str, ...]
) -> Iterator[FollowItem]:
    """What all attempts write from now on, to the end of the run; then what nodes that were given up still have to
    tell, where they answer. cursors: node -> path -> bytes known already."""
    known = {node: dict(paths) for node, paths in cursors.items()}
    going = True
    while going:
        attempt = _Attempt(store, _begun(store, run))
        streams = Streams(backend, RunRef(run.run_id, attempt.run.plan), patterns, known)
        try:
            while not attempt.over(time.monotonic()):
                for item in streams.read(LOOK):
                    attempt.told(item)
                    yield item
        finally:
            streams.close()
        going = attempt.another
    everywhere = RunRef(run.run_id, store.get(run.run_id).plan.everywhere())
    for item in backend.follow(everywhere, known, patterns, until_final=False):
        if not (isinstance(item, FollowLost) and item.error.kind == "no_run"):
            yield item


def _begun(store: Store, run: Run) -> Run:
    """The run once its attempt runs: before that its nodes would tell of the end of the one before."""
    while True:
        current = store.get(run.run_id)
        waiting = current.state is State.PREPARING and (current.supervised or owner_alive(current.owner))
        if not waiting:
            return current
        time.sleep(LOOK)


class _Attempt:
    """One attempt while it is followed. ``another``: whether it is over because there is a further one."""

    def __init__(self, store: Store, run: Run) -> None:
        self.run, self.another = run, False
        self._store = store
        self._silent = {node.name for node in run.plan.nodes}  # have not said their last word yet
        self._looked = time.monotonic()
        self._since: float | None = None

    def told(self, item: FollowItem) -> None:
        """Files come before the state that ends them: a node in a final state has told everything."""
        if isinstance(item, NodeNews):
            word = State.__members__.get(str(item.status.get("state")))
            if item.status.get("attempt") == self.run.attempt and word is not None and word.final:
                self._silent.discard(item.node)
        elif isinstance(item, FollowLost) and item.final:
            self._silent.discard(item.node)

    def over(self, now: float) -> bool:
        """Whether nothing more comes of this attempt."""
        if now - self._looked < STORE:
            return False
        self._looked = now
        current = self._store.get(self.run.run_id)
        self.another = current.attempt != self.run.attempt
        if not self.another and current.state.final and current.settled:
            return True
        if self.another or (not self._silent and not current.supervised):
            self._since = now if self._since is None else self._since
        else:
            self._since = None
        bound = LATE if self.another else ABANDONED
        waited = self._since is not None and now - self._since > bound
        return waited or (self.another and not self._silent)

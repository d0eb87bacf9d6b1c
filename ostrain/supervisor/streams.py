"""What the nodes of an attempt tell, as one queue: read with a time limit, whatever the nodes do."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Collection, Iterator

from cluster.backend import Backend, Chunk, FollowItem, FollowLost, RunRef

AGAIN = 5.0  # seconds after which a stream that was given up is opened anew


class Streams:
    """Follows all nodes of a run's attempt until closed, in threads of its own.

    cursors: node -> path -> bytes already told; kept up to date, so that the next attempt goes on from there.
    """

    def __init__(
        self, backend: Backend, run: RunRef, patterns: tuple[str, ...], cursors: dict[str, dict[str, int]]
    ) -> None:
        self._backend, self._run, self._patterns, self.cursors = backend, run, patterns, cursors
        self._items: queue.SimpleQueue[FollowItem | BaseException] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._again: dict[str, float] = {}
        self._open({node.name for node in run.plan.nodes})

    def _open(self, names: Collection[str]) -> None:
        run = RunRef(self._run.run_id, self._run.plan.only(names))
        threading.Thread(target=self._read, args=(run,), name="supervise", daemon=True).start()

    def _read(self, run: RunRef) -> None:
        cursors = {name: dict(self.cursors.get(name, {})) for name in (node.name for node in run.plan.nodes)}
        try:
            for item in self._backend.follow(run, cursors, self._patterns):
                if self._closed.is_set():
                    return
                self._items.put(item)
        except BaseException as error:  # a mistake of ours: whoever reads must see it
            self._items.put(error)

    def read(self, seconds: float) -> Iterator[FollowItem]:
        """What there is; waits at most ``seconds`` for a first item."""
        self._reopen()
        wait = seconds
        while True:
            try:
                item = self._items.get(timeout=wait) if wait else self._items.get_nowait()
            except queue.Empty:
                return
            wait = 0.0
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, Chunk):
                self.cursors.setdefault(item.node, {})[item.path] = item.end
            elif isinstance(item, FollowLost) and item.final:
                self._again[item.node] = time.monotonic() + AGAIN
            yield item

    def _reopen(self) -> None:
        due = [name for name, moment in self._again.items() if time.monotonic() >= moment]
        for name in due:
            del self._again[name]
            self._open({name})

    def close(self) -> None:
        """Stop telling; threads end by themselves when their streams say something, or break."""
        self._closed.set()

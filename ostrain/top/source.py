"""Where a board's news come from: the nodes' files, each from near its end, in a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

from cluster.backend import Backend, FollowItem, NodeError, RunRef
from cluster.backends import open_backend
from ostrain.errors import OstrainError
from ostrain.store import Run, Store
from ostrain.top.temperature import EVERY, temperatures

PATTERNS = ("metrics/rank-*.jsonl", "events.jsonl")
CURVE_BYTES = 4 << 20  # of the first rank's metrics: about 9000 steps
TAIL_BYTES = 8 << 10  # of every other rank's
EVENT_BYTES = 128 << 10
WAIT = 2.0  # seconds between two looks whether a supervisor goes on with the run

Cursors = dict[str, dict[str, int]]
News = FollowItem | Run | dict[str, dict[int, int]] | OstrainError | None


def near_the_end(backend: Backend, run: RunRef) -> Cursors:
    """Offsets from which the files are worth reading: a long run has written more than anybody wants to wait for."""
    first = min((rank for node in run.plan.nodes for rank in node.ranks), default=0)
    cursors: Cursors = {}
    for name, answer in backend.files(run, PATTERNS, timeout=20.0).items():
        if isinstance(answer, NodeError):
            continue
        for path, facts in answer.items():
            events = path == "events.jsonl"
            keep = EVENT_BYTES if events else CURVE_BYTES if path == f"metrics/rank-{first}.jsonl" else TAIL_BYTES
            if (start := int(facts["size"]) - keep) > 0:
                cursors.setdefault(name, {})[path] = start
    return cursors


class Feed:
    """A thread that follows a run through its attempts and puts what it reads into ``items``.

    ``items`` holds items of a follow, a Run where the run goes on as another attempt or on other nodes, node -> device
    -> degrees, an OstrainError that ended it, and last None.
    """

    def __init__(self, run: Run) -> None:
        self.items: queue.Queue[News] = queue.Queue(10_000)
        self._run = run
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._follow, name="top", daemon=True)]
        if run.plan.device == "Ascend":
            self._threads.append(threading.Thread(target=self._warm, name="top temperatures", daemon=True))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()

    def waiting(self) -> Iterator[News]:
        """What has come since the last look."""
        for _ in range(self.items.qsize()):
            yield self.items.get_nowait()

    def _follow(self) -> None:
        backend = open_backend(self._run.plan)
        store = Store()  # connections belong to one thread
        try:
            run: Run | None = self._run
            while run is not None and not self._stop.is_set():
                ref = RunRef(run.run_id, run.plan)
                for item in backend.follow(ref, near_the_end(backend, ref), PATTERNS):
                    self.items.put(item)
                    if self._stop.is_set():
                        return
                run = self._next(store, run)
                if run is not None:
                    self.items.put(run)
        except OstrainError as error:
            self.items.put(error)
        finally:
            self.items.put(None)
            store.close()
            backend.close()

    def _next(self, store: Store, run: Run) -> Run | None:
        """The run as its next attempt; None where nobody starts one."""
        while not self._stop.wait(WAIT):
            current = store.get(run.run_id)
            if current.attempt != run.attempt and not current.state.final:
                return current
            if not current.supervised:
                return None
        return None

    def _warm(self) -> None:
        """Temperatures over a connection of their own: a slow npu-smi must not delay anything."""
        backend = open_backend(self._run.plan)
        try:
            while not self._stop.is_set():
                if found := temperatures(backend, self._run.plan):
                    self.items.put(found)
                self._stop.wait(EVERY)
        except OstrainError:  # the nodes are told of by the other thread
            return
        finally:
            backend.close()


def gathered(backend: Backend, run: Run) -> Iterator[FollowItem]:
    """One pass over what there is."""
    ref = RunRef(run.run_id, run.plan)
    yield from backend.follow(ref, near_the_end(backend, ref), PATTERNS, until_final=False)

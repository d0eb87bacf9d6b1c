"""Several ranks in one process: threads that meet at every collective."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from models.parallel.world import World

T = TypeVar("T")


class _Meeting:
    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=30)
        self.values: list[object] = [None] * size


class ThreadWorld(World):
    def __init__(self, rank: int, size: int, meeting: _Meeting) -> None:
        self.rank, self.size, self.leader = rank, size, rank == 0
        self._meeting = meeting

    def _exchange(self, value: object) -> list[object]:
        self._meeting.values[self.rank] = value
        self._meeting.barrier.wait()
        values = list(self._meeting.values)
        self._meeting.barrier.wait()
        return values

    def sum(self, values: np.ndarray) -> np.ndarray:
        return np.sum(np.stack(self._exchange(values)), axis=0)  # type: ignore[call-overload, no-any-return]

    def broadcast(self, values: np.ndarray) -> np.ndarray:
        return self._exchange(values)[0]  # type: ignore[return-value]

    def broadcast_bytes(self, data: bytes, root: int = 0) -> bytes:
        return self._exchange(data)[root]  # type: ignore[return-value]

    def gather_bytes(self, data: bytes) -> list[bytes]:
        return self._exchange(data)  # type: ignore[return-value]

    def barrier(self) -> None:
        self._exchange(None)


def run_ranks(size: int, work: Callable[[World], T]) -> list[T]:
    """``work`` on every rank at once; results by rank."""
    meeting = _Meeting(size)

    def one(rank: int) -> T:
        try:
            return work(ThreadWorld(rank, size, meeting))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(one, rank) for rank in range(size)]
        errors = [error for future in futures if (error := future.exception()) is not None]
    # The first cause, not the ranks that waited in vain for the one that failed.
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [future.result() for future in futures]

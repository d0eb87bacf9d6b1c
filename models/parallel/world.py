"""The ranks of a run. One process alone is a world of one; nothing here imports MindSpore before ``start``."""

from __future__ import annotations

import os
from typing import Any

import numpy as np


class World:
    """A world of one process. ``leader``: the first rank of its node, as far as the launcher tells."""

    rank = 0
    size = 1
    leader = True
    device = "CPU"

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Element-wise sum of a float32 array over all ranks; the same on every rank."""
        return values

    def broadcast(self, values: np.ndarray) -> np.ndarray:
        """Rank 0's float32 array, of the same shape on every rank."""
        return values

    def broadcast_bytes(self, data: bytes, root: int = 0) -> bytes:
        """Rank ``root``'s bytes on every rank."""
        return data

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Every rank's bytes, by rank, on every rank; they may differ in length."""
        return [data]

    def barrier(self) -> None:
        """Returns when every rank has come here."""

    def sum_tensors(self, tensors: list[Any]) -> list[Any]:
        """Sums of float32 MindSpore tensors over all ranks, one collective each."""
        return tensors


def launcher_rank() -> int:
    """This process's rank as the launcher (msrun, a rank table, mpirun) tells it; 0 alone."""
    return int(os.environ.get("RANK_ID") or os.environ.get("OMPI_COMM_WORLD_RANK") or 0)


def launcher_size() -> int:
    """How many workers the launcher started; 1 alone."""
    names = ("RANK_SIZE", "OMPI_COMM_WORLD_SIZE", "MS_WORKER_NUM")
    return next((int(os.environ[name]) for name in names if os.environ.get(name)), 1)


def is_scheduler() -> bool:
    """msrun runs the script once more as its scheduler: that process only brings the workers together."""
    return os.environ.get("MS_ROLE") == "MS_SCHED"


def host_threads(ranks: int) -> int:
    """Compute threads of one worker on CPU: OMP_NUM_THREADS, else this machine's share for ``ranks`` workers."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return max(1, len(os.sched_getaffinity(0)) // ranks)

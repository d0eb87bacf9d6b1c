"""Start of communication and the collectives a data parallel step needs: AllReduce and Broadcast over the world.

The same code runs over HCCL on Ascend and over MindSpore's own library on CPU. On an error nothing goes on around a
collective: ranks that disagree on what comes next exchange wrong values silently.
"""

from __future__ import annotations

import os
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ops
from mindspore.communication import get_group_size, get_rank, init

from models.exits import BAD_CONFIG, PayloadError
from models.parallel.world import World, host_threads, launcher_rank, launcher_size


def start(max_device_memory: int | None = None) -> World:
    """Chooses the device and joins the other ranks. Call once, before the first tensor."""
    device = "Ascend" if ms.get_context("device_target") == "Ascend" else "CPU"
    ms.set_context(mode=ms.PYNATIVE_MODE)
    if device == "Ascend":
        ms.set_device("Ascend", int(os.environ.get("DEVICE_ID", "0")))
        if max_device_memory is not None:
            ms.runtime.set_memory(max_size=f"{max_device_memory / (1 << 30):.3f}GB")
    else:
        ms.set_device("CPU")
    if launcher_size() == 1 and "MS_ROLE" not in os.environ:
        world = World()
    else:
        # Also for one worker of msrun, whose scheduler waits for it. In the scheduler's own process this call does not
        # return: it serves the workers and exits.
        init("hccl" if device == "Ascend" else "mccl")
        world = Ranks()
    world.device = device
    if device == "CPU":
        # Kernels one after the other, each with all threads: the dispatching one computes, too. More threads than
        # cores spin in each other's way.
        ms.runtime.dispatch_threads_num(1)
        ms.device_context.cpu.op_tuning.threads_num(max(1, host_threads(world.size) - 1))
    return world


class Ranks(World):
    """All ranks of the run."""

    def __init__(self) -> None:
        self.rank, self.size = get_rank(), get_group_size()
        wanted = launcher_rank()
        if wanted != self.rank:
            raise PayloadError(
                BAD_CONFIG,
                f"the launcher says rank {wanted}, the communication library says rank {self.rank}",
                where="environment RANK_ID",
                next_step="start all workers with one launcher",
            )
        # With a rank table DEVICE_ID is a physical id, and a node's first device may be any.
        self.leader = os.environ.get("OSTRAIN_LOCAL_RANK", os.environ.get("DEVICE_ID", "0")) == "0"
        self._reduce = ops.AllReduce(ops.ReduceOp.SUM)
        self._broadcasts = {0: ops.Broadcast(0)}
        self._all_gather = ops.AllGather()

    def sum(self, values: np.ndarray) -> np.ndarray:
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        return self._reduce(ms.Tensor(flat)).asnumpy().reshape(values.shape)

    def broadcast(self, values: np.ndarray) -> np.ndarray:
        return self._from(0, np.ascontiguousarray(values, np.float32).reshape(-1)).reshape(values.shape)

    def broadcast_bytes(self, data: bytes, root: int = 0) -> bytes:
        length = int(self._from(root, np.array([len(data)], np.int64).view(np.float32)).view(np.int64)[0])
        mine = _as_floats(data) if self.rank == root else np.zeros(-(-length // 4), np.float32)
        return self._from(root, mine).tobytes()[:length] if length else b""

    def _from(self, root: int, values: np.ndarray) -> np.ndarray:
        """Rank ``root``'s float32 vector. A broadcast copies bits, so they may stand for anything."""
        if root not in self._broadcasts:
            self._broadcasts[root] = ops.Broadcast(root)
        received: np.ndarray = self._broadcasts[root]((ms.Tensor(values),))[0].asnumpy()
        return received

    def gather_bytes(self, data: bytes) -> list[bytes]:
        lengths = [
            int(value) for value in self._gather(np.array([len(data)], np.int64).view(np.float32)).view(np.int64)
        ]
        width = -(-max(lengths) // 4)
        if width == 0:
            return [b""] * self.size
        padded = np.zeros(width, np.float32)
        padded[: -(-len(data) // 4)] = _as_floats(data)
        rows = self._gather(padded).reshape(self.size, width)
        return [row.tobytes()[:length] for row, length in zip(rows, lengths, strict=True)]

    def _gather(self, values: np.ndarray) -> np.ndarray:
        """Float32 vectors of all ranks, one after the other; bits as they are."""
        gathered: np.ndarray = self._all_gather(ms.Tensor(values)).asnumpy()
        return gathered

    def barrier(self) -> None:
        self.sum(np.zeros(1, np.float32))

    def sum_tensors(self, tensors: list[Any]) -> list[Any]:
        return [self._reduce(tensor) for tensor in tensors]


def _as_floats(data: bytes) -> np.ndarray:
    """The bytes, padded with zeros to whole words, as float32 without changing a bit."""
    return np.frombuffer(data + b"\0" * (-len(data) % 4), np.float32)

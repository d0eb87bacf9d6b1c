"""Collectives of tensors over one group of ranks, without gradients. The one place that chooses how a device does them.

Ascend has all of them natively (HCCL). The CPU's library has AllReduce for every group and AllGather for the world
only: the others are built from those, exactly (sums with zeros). Every call is counted (models/parallel/traffic.py).

Ranks of a group must call the same functions in the same order. On an error nothing goes on around a collective:
ranks that disagree on what comes next exchange wrong values silently.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from mindspore import Tensor
from mindspore import ops as P
from mindspore.communication import GlobalComm, create_group

from models import ops
from models.parallel.traffic import Traffic

# Communicators made in this process, by name: making one twice is an error.
_made: set[str] = set()


class Group:
    """``ranks`` that exchange tensors; ``rank`` is this one's place among them."""

    def __init__(self, ranks: Sequence[int], rank: int, traffic: Traffic, name: str | None = None) -> None:
        """name: of a communicator made with ``create_group``; None for the world's own."""
        self.ranks, self.size, self.rank, self.traffic = tuple(ranks), len(ranks), rank, traffic
        if self.size == 1:
            return
        self._native = ops.device_target() == "Ascend"
        everyone = name is None
        name = GlobalComm.WORLD_COMM_GROUP if name is None else name
        self._reduce = P.AllReduce(P.ReduceOp.SUM, group=name)
        self._gather = P.AllGather(group=name) if self._native or everyone else None
        if self._native:
            self._scatter = P.ReduceScatter(P.ReduceOp.SUM, group=name)
            self._exchange = P.AlltoAll(self.size, 0, 0, group=name)

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over the group, any shape."""
        if self.size == 1:
            return x
        self._count("all_reduce", x)
        return self._timed(self._reduce, x)

    def all_gather(self, x: Tensor) -> Tensor:
        """x [n] of every rank, one after the other: [size * n]."""
        if self.size == 1:
            return x
        self._count("all_gather", x)
        return self._gathered(x)

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """x [size * n] summed over the group, of which this rank gets its [n]."""
        if self.size == 1:
            return x
        self._count("reduce_scatter", x)
        if self._native:
            return self._timed(self._scatter, x)
        width = x.shape[0] // self.size
        # A copy: a slice would keep the whole sum alive.
        return self._timed(self._reduce, x)[self.rank * width : (self.rank + 1) * width].copy()

    def all_to_all(self, x: Tensor) -> Tensor:
        """x [size, ...]: row r goes to rank r; the result's row r came from rank r."""
        if self.size == 1:
            return x
        self._count("all_to_all", x)
        if self._native:
            return self._timed(self._exchange, x)
        rows = self._gathered(x.reshape(-1)).reshape((self.size, *x.shape))
        return rows[:, self.rank].copy()

    def _gathered(self, x: Tensor) -> Tensor:
        if self._gather is not None:
            return self._timed(self._gather, x)
        rows = [x if place == self.rank else P.zeros_like(x) for place in range(self.size)]
        return self._timed(self._reduce, P.concat(rows))

    def _timed(self, collective: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Makes the collective. Where it is timed, what the device still has to do before it is not counted."""
        if not self.traffic.timed:
            return collective(x)
        ops.settle()
        start = time.perf_counter()
        result = collective(x)
        ops.settle()
        self.traffic.wait(time.perf_counter() - start)
        return result

    def _count(self, kind: str, x: Tensor) -> None:
        self.traffic.add(kind, x.size, x.itemsize, self.size)


def make_groups(world: int, rank: int, families: Sequence[Sequence[Sequence[int]]], traffic: Traffic) -> list[Group]:
    """This rank's group of every family; a family is a partition of all ranks.

    Every rank makes the groups it belongs to in the order of the families. A family of one group is the world itself.
    """
    groups = []
    for number, family in enumerate(families):
        mine = next(members for members in family if rank in members)
        name = None
        if 1 < len(mine) < world:
            name = f"family{number}-" + "-".join(str(member) for member in mine)
            if name not in _made:
                create_group(name, list(mine))
                _made.add(name)
        groups.append(Group(mine, list(mine).index(rank), traffic, name))
    return groups

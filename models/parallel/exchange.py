"""Collectives with gradients, for sequence parallelism.

Every rank computes the part of the loss that its own tokens make, and the gradients of that part: of parameters and of
what all ranks of a group hold alike, gradients are parts whose sum over the group is the whole. So the adjoint of
taking one's own slice is padding with zeros, the adjoint of an exchange is the exchange back, and nothing is scaled.
The cells run eagerly only: what they send is counted when they are called.
"""

from __future__ import annotations

from mindspore import Tensor, nn
from mindspore import ops as P

from models.parallel.group import Group


def all_to_all(group: Group, x: Tensor, split: int, concat: int) -> Tensor:
    """Axis ``split`` of x is dealt to the ranks, axis ``concat`` collected from them in rank order."""
    p, shape = group.size, x.shape
    parts = x.reshape(shape[:split] + (p, shape[split] // p) + shape[split + 1 :])
    order = [split, *(axis for axis in range(parts.ndim) if axis != split)]
    received = group.all_to_all(parts.transpose(*order))  # [p, ...shape with split / p]
    order = [axis + 1 for axis in range(received.ndim - 1)]
    order.insert(concat, 0)
    local = list(received.shape[1:])
    local[concat] *= p
    return received.transpose(*order).reshape(tuple(local))


class Exchange(nn.Cell):
    """:func:`all_to_all` with the exchange back as its gradient. The split axis must be a multiple of the group."""

    def __init__(self, group: Group, split: int, concat: int) -> None:
        super().__init__()
        self.group, self.split, self.concat = group, split, concat

    def construct(self, x: Tensor) -> Tensor:
        return all_to_all(self.group, x, self.split, self.concat)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        return (all_to_all(self.group, dout, self.concat, self.split),)


class GatherAxis(nn.Cell):
    """Joins the ranks' shards along an axis: everyone gets the whole.

    Each rank's loss then sees the whole, but counts once: the gradient of a shard is its own rank's slice.
    """

    def __init__(self, group: Group, axis: int) -> None:
        super().__init__()
        self.group, self.axis = group, axis

    def construct(self, x: Tensor) -> Tensor:
        p, shape = self.group.size, x.shape
        rows = self.group.all_gather(x.reshape(-1)).reshape((p, *shape))
        order = [axis + 1 for axis in range(len(shape))]
        order.insert(self.axis, 0)
        whole = list(shape)
        whole[self.axis] *= p
        return rows.transpose(*order).reshape(tuple(whole))

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        return (own_part(dout, self.axis, self.group),)


def cut_end(x: Tensor, axis: int, length: int) -> Tensor:
    """The first ``length`` entries along ``axis``."""
    if x.shape[axis] == length:
        return x
    return P.split(x, [length, x.shape[axis] - length], axis)[0]


def own_part(x: Tensor, axis: int, group: Group) -> Tensor:
    """This rank's part of ``axis``, whose length is a multiple of the group."""
    if group.size == 1:
        return x
    return P.split(x, x.shape[axis] // group.size, axis)[group.rank]

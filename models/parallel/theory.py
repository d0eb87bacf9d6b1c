"""What a training step must send, and hold, by formula. No import of MindSpore; docs/layouts.md explains the terms.

Tests compare what :mod:`models.parallel.traffic` counts with these numbers, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from models.config import TrainConfig
from models.parallel.traffic import sent

_FLOAT = 4
_SIZES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class Tokens:
    """Samples of one micro batch of one rank, and a sample's frames and patches of a frame."""

    samples: int
    frames: int
    spatial: int


class Bill:
    """Calls and bytes by kind of collective."""

    def __init__(self) -> None:
        self.entries: dict[str, tuple[int, int]] = {}

    def add(self, kind: str, elements: int, ranks: int, item_size: int = _FLOAT, times: int = 1) -> None:
        if ranks == 1 or times == 0:
            return
        calls, size = self.entries.get(kind, (0, 0))
        self.entries[kind] = (calls + times, size + times * sent(kind, elements, item_size, ranks))


def step_traffic(
    config: TrainConfig, world: int, units: Sequence[int], tokens: Tokens, dtype: str = ""
) -> dict[str, tuple[int, int]]:
    """{kind: (calls, bytes)} that every rank sends in one step that is applied.

    units: elements of every unit of trainable parameters, in the order of use. dtype: of activations and of the
    weights that travel, where it is not ``config.dtype``.
    """
    layout, micro_steps = config.layout, config.gradient_accumulation_steps
    size = _SIZES[dtype or config.dtype]
    bill = Bill()
    bill.add("all_reduce", 3, world)  # loss, weight, progress of a checkpoint
    for number, elements in enumerate(units):
        width = -(-elements // world)
        if layout.zero == 0:
            bill.add("all_reduce", width * world, world)
            continue
        bill.add("reduce_scatter", width * world, world)
        times = 1 if layout.zero < 3 else _gathers(number, len(units), micro_steps)
        bill.add("all_gather", width, world, size, times)
    if layout.zero:
        bill.add("all_gather", 2, world)  # the sum of squares of a shard, a double
    if layout.sp > 1:
        bill.add("all_reduce", tokens.samples, layout.sp, times=micro_steps)  # samples that every rank could decode
        _exchanges(bill, config, tokens, size)
    return bill.entries


def _gathers(number: int, units: int, micro_steps: int) -> int:
    """How often a unit is gathered under ZeRO 3: in every pass, but for the one still there from the pass before."""
    if units == 1:
        return 1
    forward = 1 if number == 0 else micro_steps
    backward = 0 if number == units - 1 else micro_steps
    return forward + backward


def _exchanges(bill: Bill, config: TrainConfig, tokens: Tokens, size: int) -> None:
    """The exchanges of sequence parallelism: one tensor of all tokens, divided by sp, is a unit."""
    sp, model = config.layout.sp, config.model
    spatial = -(-tokens.spatial // sp) * sp
    if config.layout.sp_kind == "ulysses":
        unit = tokens.samples * tokens.frames * spatial // sp * model.hidden_size
        block = {0: (3, 1, 1, 1), 1: ()}  # spatial: queries, keys and values; out; cross attention in and out
    else:
        unit = tokens.samples * (-(-tokens.frames // sp) * sp) * spatial // sp * model.hidden_size
        block = {0: (), 1: (1, 1)}  # temporal: in and out
    every = int(config.recompute)
    for index in range(2 * model.depth):
        passes = 3 if every and (index + 1) % every == 0 else 2
        for count in block[index % 2]:
            bill.add("all_to_all", count * unit, sp, size, passes * config.gradient_accumulation_steps)


@dataclass(frozen=True)
class PeakMemory:
    """Bytes of one rank that trains eagerly, float32, activations left out.

    states: weights, moments, averages that stay. gradients: summed ones, waiting for the update. passing: what exists
    only while one unit is worked on.
    """

    states: int
    gradients: int
    passing: int

    @property
    def total(self) -> int:
        return self.states + self.gradients + self.passing


def peak_memory(units: Sequence[int], world: int, zero: int, averages: bool) -> PeakMemory:
    """Theory of eager training with recomputation: what ZeRO shares out, and the largest unit in passing.

    In passing: the gradients of a unit's parameters, the same as one vector, and its sum over ranks, which while it is
    made has buffers to send from and to receive into; under ZeRO 3 also the gathered weights.
    """
    total = _FLOAT * sum(units)
    shard = sum(_FLOAT * -(-elements // world) for elements in units)
    of_optimizer = 3 if averages else 2
    states = {
        0: total + of_optimizer * total,
        1: total + (1 + of_optimizer) * shard,
        2: total + (1 + of_optimizer) * shard,
        3: (1 + of_optimizer) * shard,
    }[zero]
    largest = _FLOAT * max(units)
    return PeakMemory(states, shard if zero else total, (7 if zero == 3 else 6) * largest)

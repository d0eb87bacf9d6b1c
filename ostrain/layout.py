"""The parallel layout: one object that owns every degree, and says which rank sits where.

Ranks are numbered node by node. Sequence-parallel groups are consecutive ranks (their all-to-all stays inside a node
wherever it can); data-parallel groups are the ranks with the same place in those, ``sp`` apart.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

SpKind = Literal["ulysses", "dsp"]


@dataclass(frozen=True)
class LayoutProblem:
    """A degree that cannot be: ``degree`` is one of sp, sp_kind, zero, nodes, devices_per_node."""

    degree: str
    message: str


@dataclass(frozen=True)
class Place:
    """Where a rank runs. ``dp_rank`` is its data shard, ``sp_rank`` its part of a sample."""

    rank: int
    node: int
    local_rank: int
    dp_rank: int
    sp_rank: int


@dataclass(frozen=True)
class Layout:
    """Degrees of parallelism. Build it with ``Layout.checked`` unless the degrees are known to fit."""

    nodes: int
    devices_per_node: int
    sp: int = 1
    sp_kind: SpKind = "ulysses"
    zero: int = 0

    @property
    def world(self) -> int:
        return self.nodes * self.devices_per_node

    @property
    def dp(self) -> int:
        return self.world // self.sp

    def place(self, rank: int) -> Place:
        if not 0 <= rank < self.world:
            raise ValueError(f"rank {rank} is not one of 0..{self.world - 1}")
        node, local = divmod(rank, self.devices_per_node)
        dp_rank, sp_rank = divmod(rank, self.sp)
        return Place(rank, node, local, dp_rank, sp_rank)

    def ranks_of_node(self, node: int) -> tuple[int, ...]:
        """Global ranks of node ``node`` (from 0), by local rank."""
        if not 0 <= node < self.nodes:
            raise ValueError(f"node {node} is not one of 0..{self.nodes - 1}")
        return tuple(range(node * self.devices_per_node, (node + 1) * self.devices_per_node))

    def sp_groups(self) -> tuple[tuple[int, ...], ...]:
        """Ranks that share a sample: ``dp`` groups of ``sp`` consecutive ranks."""
        return tuple(tuple(range(start, start + self.sp)) for start in range(0, self.world, self.sp))

    def dp_groups(self) -> tuple[tuple[int, ...], ...]:
        """Ranks that hold the same part of different samples: ``sp`` groups of ``dp`` ranks, ``sp`` apart."""
        return tuple(tuple(range(start, self.world, self.sp)) for start in range(self.sp))

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "world": self.world, "dp": self.dp}

    def problems(self, num_heads: int) -> list[LayoutProblem]:
        """Degrees that cannot be, each with the values that would work. num_heads: of the model, for ulysses."""
        found = []
        for degree in ("nodes", "devices_per_node", "sp"):
            if getattr(self, degree) < 1:
                found.append(LayoutProblem(degree, f"{degree} is {getattr(self, degree)}; it has to be at least 1"))
        if not 0 <= self.zero <= 3:
            found.append(LayoutProblem("zero", f"zero is {self.zero}; the stages are 0, 1, 2 and 3"))
        if found:
            return found
        heads_matter = self.sp_kind == "ulysses"
        would_work = [size for size in divisors(self.world) if not heads_matter or num_heads % size == 0]
        if self.world % self.sp:
            size = f"{_count(self.nodes, 'node')} x {_count(self.devices_per_node, 'device')}"
            text = f"sp {self.sp} does not divide the {self.world} workers ({size}); {_choice(would_work)} would work"
            found.append(LayoutProblem("sp", text))
        elif heads_matter and num_heads % self.sp:
            found.append(
                LayoutProblem(
                    "sp",
                    f"ulysses shares {num_heads} attention heads among sp {self.sp} workers, which leaves a rest; "
                    f"{_choice(would_work)} would work, or sp_kind dsp",
                )
            )
        return found

    @classmethod
    def checked(cls, nodes: int, devices_per_node: int, num_heads: int, **degrees: Any) -> Layout:
        """A layout whose degrees fit. Raises ValueError with every problem."""
        layout = cls(nodes, devices_per_node, **degrees)
        problems = layout.problems(num_heads)
        if problems:
            raise ValueError("; ".join(problem.message for problem in problems))
        return layout


def divisors(number: int) -> list[int]:
    """All divisors in ascending order."""
    low = [size for size in range(1, int(number**0.5) + 1) if number % size == 0]
    return sorted({*low, *(number // size for size in low)})


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _choice(values: list[int]) -> str:
    words = [str(value) for value in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"

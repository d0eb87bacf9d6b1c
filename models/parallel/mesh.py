"""Who works with whom: one object that knows the world, the degrees of parallelism and this rank's place.

Sequence-parallel groups are consecutive ranks, so that their traffic stays inside a node wherever it can. Ranks with
the same place in those see different samples (data parallel). Optimizer states, gradients and weights are sharded over
the whole world: ranks of one sequence-parallel group hold different shards, too.
"""

from __future__ import annotations

from models.config import LayoutConfig
from models.exits import BAD_CONFIG, PayloadError
from models.parallel.group import Group, make_groups
from models.parallel.traffic import Traffic
from models.parallel.world import World


class Mesh:
    """dp and sp: sizes; dp_rank, sp_rank: this rank's place; ``everyone`` and ``sp_group``: whom it talks to."""

    def __init__(self, world: World, layout: LayoutConfig) -> None:
        """PayloadError where sp does not divide the world."""
        if world.size % layout.sp:
            divisors = [str(sp) for sp in range(1, world.size + 1) if world.size % sp == 0]
            raise PayloadError(
                BAD_CONFIG,
                f"sp {layout.sp} does not divide a world of {world.size} workers",
                where="layout.sp",
                next_step=f"sizes that would work: {', '.join(divisors)}",
            )
        self.world, self.layout = world, layout
        self.size, self.rank, self.sp = world.size, world.rank, layout.sp
        self.dp = self.size // self.sp
        self.dp_rank, self.sp_rank = divmod(self.rank, self.sp)
        self.traffic = Traffic()
        everyone = [list(range(self.size))]
        together = [list(range(start, start + self.sp)) for start in range(0, self.size, self.sp)]
        groups: list[Group] = make_groups(self.size, self.rank, [everyone, together], self.traffic)
        self.everyone, self.sp_group = groups

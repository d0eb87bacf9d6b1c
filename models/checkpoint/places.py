"""Which ranks share a folder of checkpoints. Found out by looking, so that shared and local disks need no setting."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from models.checkpoint.together import describe_error, raise_together
from models.parallel.world import World


@dataclass(frozen=True)
class Places:
    """Folders by number: their names (those of nodes) and their ranks; ``mine`` is that of ``rank``."""

    names: tuple[str, ...]
    ranks: tuple[tuple[int, ...], ...]
    mine: int
    rank: int

    @property
    def name(self) -> str:
        return self.names[self.mine]

    @property
    def leader(self) -> bool:
        """True on the one rank of each folder that changes its list of steps."""
        return self.rank == self.ranks[self.mine][0]

    @property
    def position(self) -> int:
        return self.ranks[self.mine].index(self.rank)

    def of(self, rank: int) -> int:
        return next(place for place, ranks in enumerate(self.ranks) if rank in ranks)


def meet(folder: Path, world: World, node: str) -> Places:
    """The places of all ranks. A collective call: the folder is created, and marks of the others are looked for."""
    if world.size == 1:
        return Places((node,), ((0,),), 0, 0)
    mine = [node, str(folder.absolute()), secrets.token_hex(8)]
    everyone = [json.loads(data) for data in world.gather_bytes(json.dumps(mine).encode())]
    firsts: dict[tuple[str, str], int] = {}
    for rank, (name, path, _) in enumerate(everyone):
        firsts.setdefault((name, path), rank)
    home = firsts[mine[0], mine[1]]
    mark = folder / f".here-{mine[2]}"
    if len(firsts) > 1:
        home = _look_around(world, home, mark, {rank: everyone[rank][2] for rank in firsts.values()}, node)
    homes = [int(data) for data in world.gather_bytes(str(home).encode())]
    mark.unlink(missing_ok=True)
    leaders = sorted(set(homes))
    names = [everyone[leader][0] for leader in leaders]
    if len(set(names)) < len(names):
        # Folders of their own on one machine: the path tells them apart.
        names = [f"{everyone[leader][0]}:{everyone[leader][1]}" for leader in leaders]
    ranks = tuple(tuple(rank for rank, home in enumerate(homes) if home == leader) for leader in leaders)
    return Places(tuple(names), ranks, leaders.index(homes[world.rank]), world.rank)


def _look_around(world: World, home: int, mark: Path, tokens: dict[int, str], node: str) -> int:
    """The lowest rank whose mark is in this rank's folder, too."""
    problem = None
    if world.rank == home:
        try:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        except OSError as error:
            problem = describe_error(error, mark.parent)
    raise_together(world, problem, "the folder of checkpoints cannot be written", node)
    return min(rank for rank, token in tokens.items() if rank == home or mark.with_name(f".here-{token}").exists())

"""Which ranks share a folder of checkpoints. Found out by looking, so that shared and local disks need no setting."""

from __future__ import annotations

import errno
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.exits import BAD_CHECKPOINT, DISK_FULL, PayloadError
from models.parallel.world import World

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Places:
    """Folders by number: their names (those of nodes) and their ranks; ``mine`` is this rank's."""

    names: tuple[str, ...]
    ranks: tuple[tuple[int, ...], ...]
    mine: int
    rank: int

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
    """The places of all ranks. A collective call: the folder is created, and looked into for each other's marks."""
    if world.size == 1:
        return Places((node,), ((0,),), 0, 0)
    mine = [node, str(folder.absolute()), secrets.token_hex(8)]
    others = [json.loads(data) for data in world.gather_bytes(json.dumps(mine).encode())]
    firsts: dict[tuple[str, str], int] = {}
    for rank, (name, path, _) in enumerate(others):
        firsts.setdefault((name, path), rank)
    home = firsts[mine[0], mine[1]]
    mark = folder / f".here-{mine[2]}"
    if len(firsts) > 1:
        home = _look_around(folder, world, home, mark, {rank: others[rank][2] for rank in firsts.values()})
    homes = [int(data) for data in world.gather_bytes(str(home).encode())]
    mark.unlink(missing_ok=True)
    leaders = sorted(set(homes))
    names = [others[leader][0] for leader in leaders]
    # Two folders on one machine, such as two nodes played by one: names tell them apart.
    if len(set(names)) < len(names):
        names = [f"{others[leader][0]}:{others[leader][1]}" for leader in leaders]
    ranks = tuple(tuple(rank for rank, home in enumerate(homes) if home == leader) for leader in leaders)
    return Places(tuple(names), ranks, leaders.index(homes[world.rank]), world.rank)


def _look_around(folder: Path, world: World, home: int, mark: Path, tokens: dict[int, str]) -> int:
    """The lowest rank whose mark is in this rank's folder."""
    problem = None
    if world.rank == home:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
        except OSError as error:
            problem = describe_error(error, folder)
    raise_together(world, problem, "the folder of checkpoints cannot be written")
    return min(rank for rank, token in tokens.items() if rank == home or (folder / f".here-{token}").exists())


def describe_error(error: BaseException, where: Path) -> dict[str, Any]:
    """An error as the other ranks are told of it."""
    if isinstance(error, PayloadError):
        return {"code": error.exit_code, "what": error.what, "where": error.where, "why": error.why,
                "next": error.next_step}  # fmt: skip
    if isinstance(error, OSError):
        full = error.errno in _NO_SPACE
        return {"code": DISK_FULL if full else 1, "where": str(error.filename or where), "why": error.strerror or str(error)}  # fmt: skip
    return {"code": 1, "where": str(where), "why": f"{type(error).__name__}: {error}"}


def raise_together(world: World, problem: dict[str, Any] | None, what: str, node: str = "") -> None:
    """PayloadError on every rank if any of them has a problem (None: it has not). A collective call."""
    text = json.dumps(problem).encode() if problem is not None else b""
    told = world.gather_bytes(text)
    for rank, data in enumerate(told):
        if data:
            raise as_payload_error(json.loads(data), what, rank, world.size)


def as_payload_error(problem: dict[str, Any], what: str, rank: int, size: int) -> PayloadError:
    where = problem["where"] + (f" (rank {rank})" if size > 1 else "")
    if problem["code"] == DISK_FULL:
        what, next_step = (
            "no space left on the disk the run writes to",
            "free space there; the checkpoints written before are whole",
        )
    else:
        what = problem.get("what", what)
        next_step = problem.get("next", "look at that disk; the checkpoints written before are as they were")
    return PayloadError(problem["code"], what, where=where, why=problem["why"], next_step=next_step)


def leaders_agree(told: Sequence[bytes]) -> list[Any]:
    """JSON of those that said something."""
    return [json.loads(data) for data in told if data]


__all__ = ["BAD_CHECKPOINT", "Places", "as_payload_error", "describe_error", "leaders_agree", "meet", "raise_together"]

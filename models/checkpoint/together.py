"""An error of one rank becomes the same error on every rank, so that none waits for it in a collective."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

from models.exits import DISK_FULL, PayloadError
from models.parallel.world import World

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_OTHER = 1


def describe_error(error: BaseException, where: Path) -> dict[str, Any]:
    """An error as the other ranks are told of it. ``where`` stands in for a file name that it does not carry."""
    if isinstance(error, PayloadError):
        return {
            "code": error.exit_code,
            "what": error.what,
            "where": error.where,
            "why": error.why,
            "next": error.next_step,
        }
    if isinstance(error, OSError):
        code = DISK_FULL if error.errno in _NO_SPACE else _OTHER
        return {"code": code, "where": str(error.filename or where), "why": error.strerror or str(error)}
    return {"code": _OTHER, "where": str(where), "why": f"{type(error).__name__}: {error}"}


def raise_together(world: World, problem: dict[str, Any] | None, what: str, node: str) -> None:
    """PayloadError on every rank if any rank has a problem (None: it has not). A collective call."""
    mine = json.dumps({**problem, "node": node}).encode() if problem is not None else b""
    for rank, data in enumerate(world.gather_bytes(mine)):
        if data:
            raise as_payload_error(json.loads(data), what, rank, world.size)


def as_payload_error(problem: dict[str, Any], what: str, rank: int, size: int) -> PayloadError:
    """The error that ``describe_error`` described; ``what`` where it does not say itself what went wrong."""
    where = problem["where"] + (f" (node {problem['node']} rank {rank})" if size > 1 else "")
    next_step = problem.get("next", "look at that disk; the checkpoints written before are as they were")
    if problem["code"] == DISK_FULL and "what" not in problem:
        what, next_step = _FULL, "free space there; the checkpoints written before are whole"
    return PayloadError(
        problem["code"], problem.get("what", what), where=where, why=problem["why"], next_step=next_step
    )


_FULL = "no space left on the disk the run writes to"

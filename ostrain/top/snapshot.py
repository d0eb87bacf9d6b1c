"""A board as data: ``ostrain top --json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ostrain.curves import thinned
from ostrain.top.board import Board, Node, Rank
from ostrain.top.events import Told

CURVE_POINTS = 400


def snapshot(board: Board, now: float, told: Sequence[Told]) -> dict[str, Any]:
    """Times are seconds since the epoch on this machine, memory is in bytes, seconds and waits are a step's."""
    status = board.status(now)
    return {
        "run_id": board.run.run_id,
        "time": now,
        "state": status.state.value,
        "reason": status.reason,
        "attempt": board.run.attempt,
        "step": board.step,
        "steps": board.steps,
        "loss": board.loss,
        "seconds_per_step": board.pace,
        "seconds_left": None if status.state.final else board.seconds_left(),
        "checkpoint": status.checkpoint,
        "nodes": [_node(node) for node in board.nodes.values()],
        "curve": [[int(x), y] for x, y in thinned(board.losses.points(), CURVE_POINTS)],
        "events": [{"time": one.time, "who": one.who, "text": one.text, "bad": one.bad}
                   for one in sorted(told, key=lambda one: one.time)[-50:]],
    }  # fmt: skip


def _node(node: Node) -> dict[str, Any]:
    return {
        "node": node.name,
        "lost_since": node.lost[0] if node.lost else None,
        "lost_why": node.lost[1] if node.lost else None,
        "temperatures": {str(device): degrees for device, degrees in sorted(node.temperatures.items())},
        "ranks": [_rank(rank) for rank in node.ranks],
    }


def _rank(rank: Rank) -> dict[str, Any]:
    return {
        "rank": rank.rank, "step": rank.step, "seconds_per_step": rank.pace, "data_wait": rank.wait, "loss": rank.loss,
        "memory": rank.memory, "phase": rank.phase, "heartbeat": rank.beat, "state": rank.state,
    }  # fmt: skip

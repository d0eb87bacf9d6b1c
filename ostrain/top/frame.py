"""One picture of a board, for a width and a height: heading, nodes and ranks, loss curve, what happened last.

Few ranks have a line each. Where the lines do not suffice nodes have one each, with the worst ranks named below; where
even these are too many, the worst nodes have one, and the others share one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ostrain.curves import thinned
from ostrain.logs import printable
from ostrain.talk import age
from ostrain.top.board import Board, Node, Rank
from ostrain.top.events import Told
from ostrain.top.plot import plot
from ostrain.top.rows import HEADERS, Row, cells, group_row, node_row, rank_row

if TYPE_CHECKING:
    from rich.console import RenderableType

WORST = 4


@dataclass(frozen=True)
class Size:
    """Of the terminal, in letters. height 0: as many lines as there are things to tell."""

    width: int
    height: int = 0


def frame(
    board: Board, size: Size, now: float, told: Sequence[Told] = (), *, hint: str = "", plain: bool = False
) -> RenderableType:
    """told: what happened, oldest first. hint: the last line."""
    from rich.console import Group
    from rich.text import Text

    height = size.height or 10_000
    heading = [Text(printable(line, styled=True), no_wrap=True, overflow="ellipsis", style="bold" if not n else "")
               for n, line in enumerate(_heading(board, now))]  # fmt: skip
    left = height - len(heading) - bool(hint)
    curve_height = 9 if left >= 30 else 6 if left >= 18 else 0
    lines = plot(thinned(board.losses.points(), 400), min(size.width, 110), curve_height - 1, plain=plain)
    curve = [Text("loss", style="dim"), *map(Text, lines)] if lines else []
    events = _events(told, 6 if left >= 24 else 3 if left >= 12 else 1, now)
    rows = _rows(board, max(3, left - len(curve) - len(events) - (2 if size.width >= 60 else 1)), now)
    parts: list[RenderableType] = [*heading, _table(rows, size.width, now), *curve, *events]
    if hint:
        parts.append(Text(hint, style="dim", no_wrap=True, overflow="ellipsis"))
    return Group(*parts)


def _heading(board: Board, now: float) -> list[str]:
    status = board.status(now)
    plan = board.plan
    world = f"{plan.world} rank{'s' if plan.world > 1 else ''} on {len(plan.nodes)} node{'s' * (len(plan.nodes) > 1)}"
    first = f"{board.run.run_id}  {status.state.value} ({status.reason})  attempt {board.run.attempt}  {world}"
    parts = [f"step {'-' if board.step is None else board.step}" + (f"/{board.steps}" if board.steps else "")]
    if board.loss is not None:
        parts.append(f"loss {board.loss:.4f}")
    if board.pace is not None:
        parts.append(f"{board.pace:.2f} s/step")
    if (left := board.seconds_left()) is not None and not status.state.final:
        parts.append(f"about {age(left)} left")
    if status.checkpoint is not None:
        parts.append(f"checkpoint {status.checkpoint}")
    lost = [node.name for node in board.nodes.values() if node.lost is not None]
    if lost:
        parts.append(f"no answer from {', '.join(lost[:3])}" + (f" and {len(lost) - 3} more" if len(lost) > 3 else ""))
    return [first, "  ".join(parts)]


def _rows(board: Board, room: int, now: float) -> list[Row]:
    """At most ``room`` lines, without the head."""
    nodes = list(board.nodes.values())
    ranks = [rank for node in nodes for rank in node.ranks]
    if len(ranks) <= room:
        return [rank_row(board, node, rank, now) for node in nodes for rank in node.ranks]
    worst = [rank_row(board, board.nodes[rank.node], rank, now, bad=True) for rank in _worst(board, now)]
    if len(nodes) + len(worst) <= room:
        return [node_row(board, node, now) for node in nodes] + worst
    worst = worst[: max(0, min(WORST, room // 3))]
    ordered = sorted(nodes, key=lambda node: _badness(board, node))
    shown = ordered[: max(1, room - len(worst) - 1)]
    others = [node for node in nodes if node not in shown]
    return [node_row(board, node, now) for node in shown] + ([group_row(board, others, now)] if others else []) + worst


def _badness(board: Board, node: Node) -> tuple[bool, int, float]:
    """Nodes that need a look first: without an answer, far behind, slow."""
    steps = [rank.step for rank in node.ranks if rank.step is not None]
    return node.lost is None, min(steps, default=-1), -max((rank.pace or 0.0 for rank in node.ranks), default=0.0)


def _worst(board: Board, now: float) -> list[Rank]:
    """Ranks that stand out: ended badly, behind the others, silent for long, waiting for data."""
    ahead = max((rank.step for rank in board.ranks.values() if rank.step is not None), default=0)

    def weight(rank: Rank) -> tuple[bool, int, float]:
        ended = rank.state not in ("", "running", "done")
        behind = ahead - (rank.step if rank.step is not None else 0)
        return ended, behind, (rank.wait or 0.0) / rank.pace if rank.pace else 0.0

    ranked = sorted(board.ranks.values(), key=weight, reverse=True)
    return [rank for rank in ranked[:WORST] if weight(rank) > (False, 0, 0.1)]


def _table(rows: Sequence[Row], width: int, now: float) -> RenderableType:
    from rich import box
    from rich.table import Table

    names = _columns(rows, width)
    table = Table(box=box.SIMPLE_HEAD if width >= 60 else None, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in names:
        left = name in ("NODE", "STATE")
        table.add_column(name, justify="left" if left else "right", no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*(printable(one, styled=True).replace("[", "\\[") for one in cells(row, names)), style=row.style)
    return table


def _columns(rows: Sequence[Row], width: int) -> list[str]:
    """The columns that fit; the last ones of the list go first."""
    names = list(HEADERS)
    if not any(row.temperature for row in rows):
        names.remove("TEMP")
    for name in ("BEAT", "TEMP", "MEMORY", "WAIT", "STATE", "s/STEP"):
        needed = sum(1 + max([len(one), *(len(text) for row in rows for text in cells(row, [one]))]) for one in names)
        if needed <= width:
            break
        if name in names:
            names.remove(name)
    return names


def _events(told: Sequence[Told], room: int, now: float) -> list[RenderableType]:
    from rich.text import Text

    lines: list[RenderableType] = []
    for one in sorted(told, key=lambda one: one.time)[-room:]:
        stamp = time.strftime("%H:%M:%S", time.localtime(one.time))
        text = printable(f"{stamp} {one.who}: {one.text}", styled=True)
        lines.append(Text(text, style="red" if one.bad else "dim", no_wrap=True, overflow="ellipsis"))
    return lines

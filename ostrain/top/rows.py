"""Lines of the table: one for a rank, a node or a group of nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ostrain.talk import age
from ostrain.top.board import Board, Node, Rank

HEADERS = ("NODE", "RANK", "STEP", "s/STEP", "STATE", "WAIT", "MEMORY", "TEMP", "BEAT")
STALE = 30.0  # seconds without a heartbeat that are worth a colour


@dataclass(frozen=True)
class Row:
    """Texts by column, and a rich style."""

    node: str
    rank: str
    step: str
    seconds: str
    state: str
    wait: str
    memory: str
    temperature: str
    beat: str
    style: str = ""


def cells(row: Row, names: Sequence[str]) -> list[str]:
    by_name = dict(
        zip(
            HEADERS,
            (row.node, row.rank, row.step, row.seconds, row.state, row.wait, row.memory, row.temperature, row.beat),
            strict=True,
        )
    )
    return [by_name[name] for name in names]


def rank_row(board: Board, node: Node, rank: Rank, now: float, *, bad: bool = False) -> Row:
    """bad: one of the ranks that stand out."""
    final = board.run.state.final
    silent = "" if rank.beat is None else age(now - rank.beat)
    state, style = _state(node, rank, now)
    if bad and not style:
        style = "yellow"
    if not style and not final and rank.beat is not None and now - rank.beat > STALE and rank.phase == "step":
        style = "yellow"
    return Row(
        node.name,
        str(rank.rank),
        "-" if rank.step is None else str(rank.step),
        _seconds(rank.pace),
        state,
        _share(rank),
        size(rank.memory),
        degrees(node),
        silent,
        style,
    )


def node_row(board: Board, node: Node, now: float) -> Row:
    """All ranks of a node: the least step, the slowest pace, the longest wait, the most memory."""
    return _together(node.name, [node], now)


def group_row(board: Board, nodes: Sequence[Node], now: float) -> Row:
    return _together(f"{len(nodes)} more nodes", nodes, now)


def _together(name: str, nodes: Sequence[Node], now: float) -> Row:
    ranks = [rank for node in nodes for rank in node.ranks]
    numbers = sorted(rank.rank for rank in ranks)
    steps = [rank.step for rank in ranks if rank.step is not None]
    span = "-" if not steps else str(steps[0]) if min(steps) == max(steps) else f"{min(steps)}-{max(steps)}"
    states: dict[str, int] = {}
    styles = set()
    for node in nodes:
        for rank in node.ranks:
            state, style = _state(node, rank, now)
            states[state] = states.get(state, 0) + 1
            styles.add(style)
    beats = [rank.beat for rank in ranks if rank.beat is not None]
    most = max(states, key=lambda state: states[state]) if states else ""
    shown = most if len(states) <= 1 else f"{most} {states[most]}/{len(ranks)}"
    contiguous = len(numbers) > 1 and numbers[-1] - numbers[0] == len(numbers) - 1
    return Row(
        name,
        f"{numbers[0]}-{numbers[-1]}" if contiguous else str(len(numbers)) if len(nodes) > 1 else str(numbers[0]),
        span,
        _seconds(max((rank.pace for rank in ranks if rank.pace is not None), default=None)),
        shown,
        max((_share(rank) for rank in ranks), key=lambda text: (len(text), text), default=""),
        size(max((rank.memory or 0 for rank in ranks), default=0) or None),
        max((degrees(node) for node in nodes), key=lambda text: (len(text), text), default=""),
        age(now - min(beats)) if beats else "",
        styles.pop() if len(styles) == 1 else "red" if "red" in styles else "",
    )


def _state(node: Node, rank: Rank, now: float) -> tuple[str, str]:
    """Word and style."""
    if node.lost is not None:
        return f"no answer {age(now - node.lost[0])}" + (" (given up)" if node.given_up else ""), "dim"
    if rank.state not in ("", "running", "done"):
        return rank.state, "red"
    return (rank.state if rank.state == "done" else rank.phase or rank.state or "-"), ""


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _share(rank: Rank) -> str:
    """Share of a step spent waiting for data."""
    return f"{min(1.0, rank.wait / rank.pace):.0%}" if rank.wait is not None and rank.pace else "-"


def size(value: int | None) -> str:
    if not value:
        return "-"
    return f"{value / (1 << 30):.1f} GB" if value >= 1 << 30 else f"{value / (1 << 20):.0f} MB"


def degrees(node: Node) -> str:
    """The hottest device of a node, where something tells temperatures."""
    return f"{max(node.temperatures.values()):.0f} C" if node.temperatures else ""

"""A curve in text: braille dots, two columns and four rows a letter; stars where the terminal has none."""

from __future__ import annotations

from collections.abc import Sequence

from ostrain.curves import Point, logarithms, wide

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # U+2800 plus these


def plot(points: Sequence[Point], width: int, height: int, *, plain: bool = False) -> list[str]:
    """``height`` lines of at most ``width`` letters, the y axis's ends and the x axis's on them. [] without points."""
    if len(points) < 2 or height < 3 or width < 24:
        return []
    low, high = min(y for _, y in points), max(y for _, y in points)
    log = wide(points)
    labels = [f"{high:.4g}", *[""] * (height - 3), f"{low:.4g}"]
    margin = max(map(len, labels)) + 1
    columns, rows = width - margin - 1, height - 1
    grid = _scaled(logarithms(points) if log else points, columns, rows, plain)
    axis = "|" if plain else "┤"
    lines = [f"{label:>{margin - 1}}{axis}{line}" for label, line in zip(labels, grid, strict=True)]
    first, last = f"{points[0][0]:.0f}" + (" (log scale)" if log else ""), f"step {points[-1][0]:.0f}"
    return [*lines, " " * margin + first + last.rjust(max(1, columns - len(first)))]


def _scaled(points: Sequence[Point], columns: int, rows: int, plain: bool) -> list[str]:
    return _dots(points, columns, rows, min(y for _, y in points), max(y for _, y in points), plain)


def _dots(points: Sequence[Point], columns: int, rows: int, low: float, high: float, plain: bool) -> list[str]:
    across, down = (1, 1) if plain else (2, 4)
    wide, tall = columns * across, rows * down
    cells = [[0] * columns for _ in range(rows)]
    before: tuple[int, int] | None = None
    start, span = points[0][0], (points[-1][0] - points[0][0]) or 1.0
    for x, y in points:
        column = min(wide - 1, int((x - start) / span * (wide - 1) + 0.5))
        row = min(tall - 1, int((high - y) / ((high - low) or 1.0) * (tall - 1) + 0.5))
        for at, line in _line(before or (column, row), (column, row)):
            cells[line // down][at // across] |= _DOTS[line % down][at % across]
        before = (column, row)
    return ["".join(_letter(cell, plain) for cell in line) for line in cells]


def _line(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """Every dot between two."""
    steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    return [
        (
            round(start[0] + (end[0] - start[0]) * number / steps),
            round(start[1] + (end[1] - start[1]) * number / steps),
        )
        for number in range(steps + 1)
    ]


def _letter(cell: int, plain: bool) -> str:
    if plain:
        return "*" if cell else " "
    return chr(0x2800 + cell) if cell else " "

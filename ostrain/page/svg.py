"""Small SVG pictures without a library: axes, lines, boxes. Every text is escaped."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from ostrain.curves import Point, thinned

WIDTH, HEIGHT = 720, 240
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 14, 30
MOST_POINTS = 1500


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between two, about ``count``."""
    if not high > low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= next((factor for factor in (1, 2, 5) if (high - low) / (step * factor) <= count), 10)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)] or [low]


@dataclass
class Chart:
    """A picture with axes from ``low`` to ``high``. Draw into it, then ``text``."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    x_label: Callable[[float], str] = lambda value: f"{value:g}"
    y_label: Callable[[float], str] = lambda value: f"{value:.4g}"
    parts: list[Markup] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.x, self.y = _widened(self.x), _widened(self.y)

    def at(self, point: Point) -> tuple[float, float]:
        across = self.width - self.left - RIGHT
        down = self.height - TOP - BOTTOM
        x = self.left + (point[0] - self.x[0]) / (self.x[1] - self.x[0]) * across
        y = TOP + (self.y[1] - point[1]) / (self.y[1] - self.y[0]) * down
        return round(x, 1), round(y, 1)

    def line(self, points: Sequence[Point], kind: str) -> None:
        """A curve; ``kind`` is a class of the page's style."""
        shown = thinned(points, MOST_POINTS)
        places = " ".join(f"{x},{y}" for x, y in map(self.at, shown))
        if len(shown) == 1:
            x, y = self.at(shown[0])
            self.parts.append(Markup('<circle class="{}" cx="{}" cy="{}" r="2"/>').format(kind, x, y))
        elif shown:
            self.parts.append(Markup('<polyline class="{}" points="{}"/>').format(kind, places))

    def mark(self, x: float, label: str, kind: str = "mark") -> None:
        """A vertical line with a word."""
        place, _ = self.at((x, self.y[0]))
        self.parts.append(
            Markup(
                '<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/><text class="note" x="{}" y="{}">{}</text>'
            ).format(kind, place, place, TOP, self.height - BOTTOM, place + 3, TOP + 9, label)
        )

    def box(
        self, left: float, right: float, y: float, height: float, kind: str, title: str, least: float = 1.0
    ) -> None:
        """A bar around ``y``; ``height`` and ``least``, its smallest width, in pixels."""
        start, middle = self.at((left, y))
        end, _ = self.at((right, y))
        self.parts.append(
            Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
                kind, start, round(middle - height / 2, 1), round(max(least, end - start), 1), height, title
            )
        )

    def name(self, y: float, label: str) -> None:
        """A word at the left of the axis."""
        _, place = self.at((self.x[0], y))
        self.parts.append(
            Markup('<text class="tick end" x="{}" y="{}">{}</text>').format(self.left - 6, place + 3, label)
        )

    def text(self, title: str, *, y_ticks: bool = True, x_axis: str = "step") -> Markup:
        """The whole element."""
        bottom = self.height - BOTTOM
        grid = []
        for value in ticks(*self.x, 8):
            x, _ = self.at((value, self.y[0]))
            grid.append(Markup('<line class="grid" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(x, TOP, bottom))
            label = Markup('<text class="tick middle" x="{}" y="{}">{}</text>')
            grid.append(label.format(x, bottom + 14, self.x_label(value)))
        for value in ticks(*self.y) if y_ticks else []:
            _, y = self.at((self.x[0], value))
            line = Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>')
            grid.append(line.format(self.left, self.width - RIGHT, y, y))
            label = Markup('<text class="tick end" x="{}" y="{}">{}</text>')
            grid.append(label.format(self.left - 6, y + 3, self.y_label(value)))
        axis = Markup('<text class="tick end" x="{}" y="{}">{}</text>').format(
            self.width - RIGHT, self.height - 3, x_axis
        )
        whole = Markup('<svg role="img" viewBox="0 0 {} {}" width="{}" height="{}"><title>{}</title>{}{}{}</svg>')
        return whole.format(
            self.width, self.height, self.width, self.height, title, Markup("").join(grid),
            Markup("").join(self.parts), axis,
        )  # fmt: skip


def _widened(ends: tuple[float, float]) -> tuple[float, float]:
    """Ends that differ."""
    low, high = ends
    if high > low:
        return low, high
    pad = abs(low) * 0.1 or 1.0
    return low - pad, high + pad


def plain(text: object) -> Markup:
    """Escaped text."""
    return escape(str(text))

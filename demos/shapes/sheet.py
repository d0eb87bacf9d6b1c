"""A picture of the results: every caption with frames of its video, and whether they show what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

_SHOWN = 5
_GAP, _TEXT = 4, 14
_RIGHT, _WRONG, _INK = (30, 130, 60), (190, 40, 30), (40, 40, 40)


@dataclass(frozen=True)
class Entry:
    """One video of the sheet. frames: uint8 [T, H, W, 3]."""

    title: str
    frames: np.ndarray
    right: bool


def contact_sheet(path: Path, entries: Sequence[Entry], columns: int = 2) -> None:
    """Writes ``path``: ``columns`` videos side by side, each as five of its frames below its title."""
    height, width = entries[0].frames.shape[1:3]
    cell = (_SHOWN * (width + _GAP) + 3 * _GAP, height + _TEXT + 3 * _GAP)
    rows = -(-len(entries) // columns)
    sheet = Image.new("RGB", (columns * cell[0], rows * cell[1]), (250, 250, 248))
    draw = ImageDraw.Draw(sheet)
    for number, entry in enumerate(entries):
        left, top = (number % columns) * cell[0] + 2 * _GAP, (number // columns) * cell[1] + _GAP
        draw.text((left, top), "+" if entry.right else "-", fill=_RIGHT if entry.right else _WRONG)
        draw.text((left + 10, top), entry.title, fill=_INK)
        for shown, frame in enumerate(np.linspace(0, len(entry.frames) - 1, _SHOWN).round().astype(int)):
            picture = Image.fromarray(entry.frames[frame])
            sheet.paste(picture, (left + shown * (width + _GAP), top + _TEXT))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)

"""Which checkpoints belong to the run as it went on: ``lineage.json`` beside them, on every node. Needs no numpy.

Every attempt notes the step it went on from. What an earlier attempt wrote beyond that step is of a branch that was
left: a node that was cut off may have written it after the others had gone on without it, and bring it back later.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from models.files import write_atomic

FILE = "lineage.json"

# attempt -> the step it went on from; 0: it started anew
Lineage = dict[int, int]


def read(folder: Path) -> Lineage:
    """What this node knows; nothing where the file is missing or damaged: other nodes have it, too."""
    try:
        record = json.loads((folder / FILE).read_bytes())
        return {int(attempt): int(step) for attempt, step in record["resumed"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def write(folder: Path, lineage: Mapping[int, int]) -> None:
    """Replaces the file as a whole, synced."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"resumed": [[attempt, lineage[attempt]] for attempt in sorted(lineage)]}
    write_atomic(folder / FILE, (json.dumps(record) + "\n").encode())


def merged(parts: Iterable[Mapping[int, int]]) -> Lineage:
    """What all nodes know together. They agree on every attempt that all of them took part in."""
    found: Lineage = {}
    for part in parts:
        found.update(part)
    return found


def left_behind(lineage: Mapping[int, int], attempt: int, step: int) -> str:
    """Why a checkpoint of ``attempt`` at ``step`` does not count; empty when it does. attempt: 0 where nobody knows."""
    later = [(number, start) for number, start in sorted(lineage.items()) if number > attempt and step > start]
    if not attempt or not later:
        return ""
    number, start = later[0]
    return f"was written by attempt {attempt}, but attempt {number} had gone on from step {start} without it"

"""Tasks of the payload in this process: a run directory, a world, and what they said."""

from __future__ import annotations

import io
from pathlib import Path

from models.events import Log, Reporter
from models.parallel.world import World
from models.task import Task


def make_task(folder: Path, world: World | None = None) -> tuple[Task, io.StringIO]:
    """A task in the run directory ``folder`` and the stream of its log."""
    world = world or World()
    for name in ("heartbeat", "metrics"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    said = io.StringIO()
    return Task(folder, world, Reporter(folder, world.rank), Log(said)), said

"""Toy workers that report and dump their stacks as the payload does, without MindSpore."""

from __future__ import annotations

# Imported from the bundle: the payload's own handler and heartbeat. The rest stands in for training.
_WORKER = """
import os, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from models.events import Reporter
from models.stacks import arm
rank = int(os.environ["RANK_ID"])
arm(Path.cwd(), rank)
Path("heartbeat").mkdir(exist_ok=True)
report = Reporter(Path.cwd(), rank)

def all_reduce():
    time.sleep({seconds})

def load_clip():
    time.sleep({seconds})

def done():
    print("ready", flush=True)

def main(places, steps):
    report.heartbeat(steps.get(rank, steps[None]), "step")
    print("ready", flush=True)
    globals()[places.get(rank, places[None])]()

main({places!r}, {steps!r})
"""


def worker(place: str, odd: dict[int, str] | None = None, steps: dict[int, int] | None = None) -> str:
    """Source of a worker whose ranks go to function ``place`` and stay; those in ``odd`` to another one. Their
    heartbeats say step 3, or what ``steps`` says."""
    from pathlib import Path

    root = str(Path(__file__).parents[2])
    return _WORKER.format(root=root, places={**(odd or {}), None: place}, steps={**(steps or {}), None: 3}, seconds=300)

"""The fault matrix: every fault of ``ostrain drill`` on a testbed of four nodes and a spare, with real trainings."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster.backends import open_backend
from cluster.node_backend import NodeBackend
from ostrain.drill.case import Ground, rehearse, undisturbed
from ostrain.drill.faults import Fault
from ostrain.drill.settings import Rehearsed, rehearse_job
from ostrain.drill.verdict import LossPair, Verdict
from ostrain.store import Store
from tests.e2e.conftest import QUICKSTART, ROOT, SMALL
from tests.faults.injector import TestbedInjector
from tests.testbed import Testbed

NODES, SPARES = 4, 1
DISK = 512  # MB of each node; a run of this size takes less than 40, the check before it wants 300 free
STEPS, EVERY = 16, 4
SETTINGS = (
    *SMALL,
    "devices_per_node=1",
    "restart.hang_timeout=10s",
    "restart.node_timeout=8s",
    "restart.start_timeout=120s",
)


@contextmanager
def as_client(bed: Testbed) -> Iterator[None]:
    """This process, and the commands it starts, as the testbed's client."""
    changed = {**bed.environment(), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    changed["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


class Matrix:
    """A testbed on which cases are rehearsed one by one; ``base`` is measured first."""

    def __init__(self, bed: Testbed, say: Callable[[str], None], *, nodes: int = NODES, steps: int = STEPS) -> None:
        self.bed = bed
        inventory = bed.home / "bed.yaml"
        inventory.write_text(bed.inventory())
        overrides = (f"cluster={inventory}", f"nodes={nodes}", *SETTINGS)
        self.rehearsed: Rehearsed = rehearse_job(QUICKSTART, overrides, steps=steps, every=EVERY)
        self.store = Store()
        self.ground = Ground(
            store=self.store,
            rehearsed=self.rehearsed,
            opened=open_backend,
            injector=lambda backend: TestbedInjector(_nodes(backend), bed),
            folder=bed.home / "drills" / f"{time.time():.0f}",
            say=say,
        )
        self.ground.bounds.start = self.ground.bounds.recover = 150.0
        self.base: dict[int, LossPair] = {}

    def measure_base(self, known: Path | None = None) -> None:
        """The undisturbed run's losses; from a file where an earlier matrix left them."""
        if known is not None and known.exists():
            self.base = {int(step): tuple(pair) for step, pair in json.loads(known.read_text()).items()}
            return
        self.base = undisturbed(self.ground)
        if known is not None:
            known.write_text(json.dumps(self.base))

    def case(self, fault: Fault, seed: int) -> Verdict:
        """One case; afterwards the testbed is as it was."""
        verdict = rehearse(self.ground, fault, seed, self.base)
        left = everything(self.bed)
        if left:
            verdict = _with_problem(verdict, f"left on the nodes: {left[:3]}")
        return verdict

    def close(self) -> None:
        self.store.close()


def _nodes(backend: object) -> NodeBackend:
    assert isinstance(backend, NodeBackend)
    return backend


def _with_problem(verdict: Verdict, problem: str) -> Verdict:
    from dataclasses import replace

    return replace(verdict, problems=(*verdict.problems, problem))


def everything(bed: Testbed) -> list[str]:
    """Commands of every process of any run on any node."""
    found = []
    for node in bed.nodes:
        listing = node.exec(["ps", "-eo", "args"], as_root=True).stdout.decode()
        found += [f"{node.name}: {line}" for line in listing.splitlines() if "models.train" in line or "msrun" in line]
    return found


def seeds_of(fault: Fault, seeds: int, first: Sequence[str]) -> range:
    """Ten of the commonest faults where several seeds are asked for, as many as asked for of the others."""
    return range(1, 1 + (max(10, seeds) if fault.name in first and seeds >= 3 else seeds))

"""Toy runs on a real Slurm: agents, allocations and signals as they are, workers without MindSpore."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.backend import RunRef
from cluster.inventory import Inventory
from cluster.slurm_backend import SlurmBackend
from ostrain.plan import LaunchPlan, NodeAccess
from ostrain.sbatch import sbatch_file
from ostrain.spec.job import JobSpec
from ostrain.templating import Templates
from tests.cluster.toys import SLEEPER, good, launch, make_plan, node_plan, toy_bundle, wait_until
from tests.testbed.slurm import SlurmBed

WEIRD = "ro ot 'q' $(x) % ü"  # letters that shells and Slurm's file names take apart


@dataclass
class SlurmSite:
    """A shared root on this machine, and runs whose jobs are ended afterwards."""

    folder: Path
    bed: SlurmBed
    backend: SlurmBackend = field(default_factory=SlurmBackend)
    runs: list[RunRef] = field(default_factory=list)
    device: str = "CPU"

    @property
    def root(self) -> Path:
        return self.folder / WEIRD

    def plan(self, worker: str, nodes: int, attempts: int, section: dict[str, Any]) -> LaunchPlan:
        section = {"exclusive": False, "config": str(self.bed.config), "gres": "npu", "warning": 0, **section}
        given = {"name": "bed", "backend": "slurm", "device": self.device, "slurm": section}
        inventory = Inventory.model_validate(given)
        job = JobSpec.model_construct(name="toy", nodes=nodes, devices_per_node=1)
        script = sbatch_file(inventory, job, sys.executable, Templates())
        access = NodeAccess("", root=str(self.root), python=sys.executable)
        names = [f"node-{rank}" for rank in range(nodes)]
        parts = [
            node_plan(name, access, worker, (rank,), rank, files=(script,) if rank == 0 else ())
            for rank, name in enumerate(names)
        ]
        service = {"section": section, **({"attempts": attempts} if attempts > 1 else {})}
        return make_plan("slurm", parts, service=service)

    def run(
        self, worker: str = SLEEPER, nodes: int = 2, name: str = "run-1", attempts: int = 1, **section: Any
    ) -> RunRef:
        run = RunRef(f"{name}-{secrets.token_hex(3)}", self.plan(worker, nodes, attempts, section))
        self.runs.append(run)
        return run

    def start(self, *arguments: Any, **options: Any) -> RunRef:
        values = options.pop("secrets", {})
        run = self.run(*arguments, **options)
        launch(self.backend, run, self.bundle(), **values)
        return run

    def bundle(self) -> Path:
        return toy_bundle(self.folder)

    def run_dir(self, run: RunRef, rank: int = 0) -> Path:
        return self.root / "runs" / run.run_id / f"node-{rank}"

    def statuses(self, run: RunRef) -> dict[str, Any]:
        return good(self.backend.poll(run))

    def wait(self, run: RunRef, states: Sequence[str] | str, bound: float = 25.0) -> dict[str, Any]:
        """The statuses once every node is in one of ``states``."""
        wanted = [states] if isinstance(states, str) else list(states)

        def reached() -> dict[str, Any] | None:
            found = self.statuses(run)
            return found if all(one["state"] in wanted for one in found.values()) else None

        found: dict[str, Any] = wait_until(reached, bound, f"{wanted} of {run.run_id}")
        return found

    def job(self, run: RunRef) -> str:
        return str(next(iter(self.statuses(run).values()))["scheduler"]["job"])

    def close(self) -> None:
        for run in self.runs:
            self.backend.stop(run, grace=0.0)
        self.backend.close()

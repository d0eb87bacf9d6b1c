"""Inventories of services that give the nodes at the start (``cluster.inventory.SERVICES``), and jobs on them."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.inventory import SERVICES, Inventory
from ostrain.spec.document import Mapping, key_mark, value_mark
from ostrain.spec.job import JobSpec
from ostrain.spec.problems import Problem


def service_problems(inventory: Inventory, tree: Mapping) -> Iterator[Problem]:
    """A service has its section and no nodes; everything else has nodes and no section of a service."""
    if inventory.allocated and "nodes" in tree.items:
        message = f"{inventory.backend} gives the nodes when a job starts; say `nodes:` in the job only"
        yield Problem(key_mark(tree, ("nodes",)), message)
    if not inventory.allocated and "nodes" not in tree.items:
        yield Problem(tree.mark, "'nodes' is missing (the nodes, in the order ranks are placed in)")
    for name in SERVICES:
        there = getattr(inventory, name) is not None
        if there and inventory.backend != name:
            message = f"backend {inventory.backend} has no use for it; say `backend: {name}`"
            yield Problem(key_mark(tree, (name,)), message)
        elif not there and inventory.backend == name:
            yield Problem(value_mark(tree, ("backend",)), f"backend {name} needs a section `{name}:`")
    if inventory.allocated:
        for key in ("user", "port", "identity_file", "interface"):
            if getattr(inventory.defaults, key) is not None and (key, inventory.backend) != ("interface", "slurm"):
                message = f"nobody logs in to nodes of {inventory.backend}" if key != "interface" else (
                    f"{inventory.backend} connects the nodes itself"
                )  # fmt: skip
                yield Problem(key_mark(tree, ("defaults", key)), message)


def job_problems(job: JobSpec, inventory: Inventory) -> Iterator[tuple[str, str]]:
    """(dotted path in the job, message): what a service cannot do."""
    if inventory.backend == "modelarts" and job.launcher == "rank_table":
        yield "launcher", "a rank table lists addresses, which ModelArts gives at the start only; use msrun"
    if inventory.backend == "slurm":
        yield from _slurm_problems(job, inventory)
    if inventory.backend == "modelarts" and job.restart.max:
        yield "restart.max", "ModelArts restarts jobs and replaces nodes itself; say `auto_restart` in the inventory"


def _slurm_problems(job: JobSpec, inventory: Inventory) -> Iterator[tuple[str, str]]:
    """What a job on Slurm cannot have."""
    if job.launcher == "rank_table":
        yield "launcher", "a rank table lists addresses, which Slurm decides on at the start only; use msrun or mpirun"
    if job.restart.max and inventory.slurm is not None and not inventory.slurm.chain:
        message = "attempts of a run on Slurm wait in its queue, but the inventory says `chain: false`"
        yield "restart.max", f"{message}; say 0 here, or `chain: true` there"
    for part in (inventory.slurm.gres or "").split(",")[:1] if inventory.slurm else []:
        count = part.rpartition(":")[2]
        if count.isdigit() and int(count) < job.devices_per_node:
            message = f"{job.devices_per_node} devices on every node, but the inventory asks Slurm for {part}"
            yield "devices_per_node", message

"""The job as a plan keeps it, so that a later attempt is compiled for other nodes without the job's file.

Everything is resolved by then: recipe and overrides are merged, the inventory is part of it, secrets are names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.inventory import Inventory
from ostrain.compiler import compile_plan
from ostrain.errors import SpecError
from ostrain.plan import LaunchPlan, NodeAccess, NodePlan
from ostrain.spec.document import Mapping
from ostrain.spec.job import JobSpec
from ostrain.spec.load import LoadedJob
from ostrain.spec.problems import Mark, Problem, Source, render_all
from ostrain.spec.rank_tables import remade_table
from ostrain.supervisor.layouts import Fit, Shape, shrink

SUPERVISED = ("local", "ssh")  # backends whose nodes are ours to choose


def attach(plan: LaunchPlan, loaded: LoadedJob) -> LaunchPlan:
    """The plan of a job with what its supervisor needs; unchanged where the job asks for none. SpecError where the
    inventory has fewer nodes than the job and its spares need."""
    restart = loaded.job.restart
    if restart.max == 0 or plan.backend not in SUPERVISED:
        return plan
    nodes = loaded.inventory.resolved()
    missing = loaded.job.nodes + restart.spares - len(nodes)
    if missing > 0:
        message = (
            f"{restart.spares} spares beyond {loaded.job.nodes} nodes, but inventory {loaded.inventory.name} "
            f"has {len(nodes)} nodes"
        )
        raise SpecError(render_all([Problem(loaded.mark("restart", "spares"), message)]))
    devices = loaded.job.devices_per_node
    spares = tuple(
        NodePlan(
            name=node.name,
            node_rank=-1,
            access=NodeAccess(
                node.host,
                node.user,
                node.port,
                node.identity_file,
                node.root,
                loaded.job.python or node.python,
                inventory=node.inventory,
            ),
            address=node.address,
            ranks=(),
            devices=node.devices[:devices],
            command=(),
            files=(),
        )
        for node in nodes[loaded.job.nodes : loaded.job.nodes + restart.spares]
    )
    # As texts: the order of buckets and variables is part of what they say, and a plan's JSON sorts its keys.
    job = {
        "path": str(loaded.path.resolve()),
        "job": loaded.job.model_dump_json(),
        "inventory": loaded.inventory.model_dump_json(),
    }
    return dataclasses.replace(plan, spares=spares, restart=restart.model_dump(mode="json"), job=job)


def disk_warning(loaded: LoadedJob) -> str:
    """What to tell before a supervised run starts whose checkpoints go with the disk of one node; "" otherwise."""
    checkpoint = getattr(loaded.job.config, "checkpoint", None)
    if checkpoint is None or loaded.job.nodes == 1 or checkpoint.copies > 1 or checkpoint.dir.startswith("/"):
        return ""
    task = loaded.job.task
    return (
        f"{task}.checkpoint.copies is 1: unless the nodes share a disk, a node that is lost takes its part of every "
        f"checkpoint along, and no restart can go on without it; say {task}.checkpoint.copies: 2"
    )


def shape_of(plan: LaunchPlan) -> Shape | None:
    """How the job wants to be spread; None where the plan does not hold its job."""
    if not plan.job:
        return None
    job = _job(plan.job)
    config: Any = job.config
    model, data = getattr(config, "model", None), getattr(config, "data", None)
    return Shape(
        nodes=job.nodes,
        devices_per_node=job.devices_per_node,
        sp=config.layout.sp,
        sp_kind=config.layout.sp_kind,
        zero=config.layout.zero,
        accumulation=getattr(config, "gradient_accumulation_steps", None),
        batch=getattr(config, "batch_size", None),
        num_heads=getattr(model, "num_heads", None),
        buckets=getattr(data, "bucket_config", None) is not None,
    )


def best_fit(plan: LaunchPlan, nodes: int) -> Fit | None:
    """The best layout of the job on at most so many nodes, as its ``restart`` section allows; None without one."""
    wanted = shape_of(plan)
    if wanted is None or not plan.restart.get("shrink", True):
        return None
    return shrink(wanted, nodes, int(plan.restart.get("min_nodes", 1)), lambda shape: _fits_memory(plan, shape))


def recompiled(plan: LaunchPlan, nodes: Sequence[str], fit: Fit | None) -> LaunchPlan:
    """The plan for other nodes (names, in the order of ranks), all others of the run among its spares.

    fit: the layout where it is not the job's own. Values of secrets are not needed and not known here.
    """
    job = _job(plan.job)
    inventory = Inventory.model_validate_json(plan.job["inventory"])
    by_name = {node.name: node for node in inventory.nodes}
    chosen = [by_name[name] for name in nodes]
    others = [node for node in inventory.nodes if node.name not in nodes]
    job = _fitted(job, fit) if fit is not None else job
    path, moved = Path(plan.job["path"]), inventory.model_copy(update={"nodes": chosen + others})
    table = remade_table(job, moved, path)
    loaded = LoadedJob(path, job, moved, _no_tree(plan.job["path"]), rank_table=table)
    made = compile_plan(loaded)
    # How nodes are reached, host keys pinned among it, does not change with their ranks.
    placed = tuple(dataclasses.replace(node, access=plan.node(node.name).access) for node in made.nodes)
    spares = tuple(node for node in (*plan.nodes, *plan.spares) if node.name not in nodes)
    return dataclasses.replace(
        made,
        nodes=placed,
        spares=spares,
        restart=plan.restart,
        job=plan.job,
        backend=plan.backend,
        sources=plan.sources,
    )


def _job(stored: dict[str, Any]) -> JobSpec:
    return JobSpec.model_validate_json(stored["job"])


def _fitted(job: JobSpec, fit: Fit) -> JobSpec:
    shape = fit.shape
    layout = job.config.layout.model_copy(update={"sp": shape.sp})
    changes: dict[str, Any] = {"layout": layout}
    if shape.accumulation is not None:
        changes["gradient_accumulation_steps"] = shape.accumulation
    if shape.batch is not None:
        changes["batch_size"] = shape.batch
    config = job.config.model_copy(update=changes)
    return job.model_copy(update={"nodes": shape.nodes, "layout": layout, job.task: config})


def _fits_memory(plan: LaunchPlan, shape: Shape) -> bool:
    """Whether a training fits the devices' memory as far as the job or its inventory tells how much there is."""
    job = _fitted(_job(plan.job), Fit(shape, 0.0))
    if job.train is None:
        return True
    from ostrain.spec.data_checks import memory_problems

    inventory = Inventory.model_validate_json(plan.job["inventory"])
    memories = [node.device_memory for node in inventory.resolved() if node.device_memory]
    limit = job.train.max_device_memory or min(memories, default=0)
    dtype = "fp32" if inventory.device == "CPU" else ""
    return not limit or not list(memory_problems(job.train, shape.layout.world, dtype, limit, ""))


def _no_tree(path: str) -> Mapping:
    """Values were checked when the job was submitted: nobody asks where they were written."""
    return Mapping({}, Mark(Source(path, "")))

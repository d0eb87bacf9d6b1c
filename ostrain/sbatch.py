"""The script Slurm is given: ``#SBATCH`` options from the inventory's section ``slurm`` and the job."""

from __future__ import annotations

import math
from collections.abc import Iterator

from cluster.inventory import Inventory
from cluster.slurm_inventory import SlurmSection
from ostrain.plan import PlanFile
from ostrain.spec.job import JobSpec
from ostrain.templating import Templates


def sbatch_file(inventory: Inventory, job: JobSpec, python: str, templates: Templates) -> PlanFile:
    """``sbatch.sh``, which lies in the run directory of the first node."""
    section = inventory.slurm or SlurmSection()
    gres = resources(section, inventory.device, job.devices_per_node)
    named = gres.split(",")[0].split(":")[0] if gres and inventory.device == "Ascend" else ""
    folder = f"{section.programs}/" if section.programs else ""
    text = templates.render(
        "sbatch.sh.j2",
        options=list(options(section, job, gres)),
        job=job.name,
        nodes=job.nodes,
        python=python,
        programs=section.programs or "",
        srun=f"{folder}srun",
        config=section.config or "",
        cpus=section.cpus or 0,
        devices=job.devices_per_node if named else 0,
        resource=named,
    )
    return PlanFile("sbatch.sh", text, 0o755)


def resources(section: SlurmSection, device: str, devices_per_node: int) -> str:
    """``--gres`` of a job; without a number its devices are asked for. NPUs are asked for where nothing is said."""
    asked = section.gres if section.gres is not None else "npu" if device == "Ascend" else ""
    parts = [part if part.rpartition(":")[2].isdigit() else f"{part}:{devices_per_node}" for part in asked.split(",")]
    return ",".join(parts) if asked else ""


def options(section: SlurmSection, job: JobSpec, gres: str) -> Iterator[str]:
    """Options without their dashes, in a fixed order. Name, working directory and dependencies follow at submission:
    they depend on the run."""
    yield f"nodes={job.nodes}"
    yield "ntasks-per-node=1"
    for name in ("partition", "account", "qos", "reservation", "constraint"):
        value = getattr(section, name)
        if value is not None:
            yield f"{name}={value}"
    if section.time is not None:
        yield f"time={slurm_time(section.time)}"
    if gres:
        yield f"gres={gres}"
    if section.cpus is not None:
        yield f"cpus-per-task={section.cpus}"
    if section.exclusive:
        yield "exclusive"
    yield "requeue" if section.requeue else "no-requeue"
    if section.warning:
        yield f"signal=B:USR1@{section.warning}"
    # Nothing of the submitter's environment: secrets may be in it, and Slurm keeps it on its disk.
    yield from ("export=NONE", "mail-type=NONE", "open-mode=append", "output=logs/slurm-%j.log")
    for name, value in section.options.items():
        yield name if value in ("", "true") else f"{name}={value}"


def slurm_time(seconds: float) -> str:
    """``[D-]HH:MM:00`` of sbatch(1); Slurm counts in minutes."""
    minutes = max(1, math.ceil(seconds / 60))
    days, rest = divmod(minutes, 24 * 60)
    clock = f"{rest // 60:02d}:{rest % 60:02d}:00"
    return f"{days}-{clock}" if days else clock

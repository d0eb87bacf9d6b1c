"""What a plan has because of its backend: files that a service runs, facts its backend wants to know."""

from __future__ import annotations

from typing import Any

from ostrain.plan import PlanFile
from ostrain.sbatch import sbatch_file
from ostrain.spec.load import LoadedJob
from ostrain.supervisor.policy import RULES, Action
from ostrain.templating import Templates


def service_files(loaded: LoadedJob, index: int, python: str, templates: Templates) -> tuple[PlanFile, ...]:
    """Files of one node beyond ``launch.sh``, ``env.sh`` and the task's configuration; none on listed nodes.

    index: the node's rank; python: the node's Python, as the inventory or the job names it.
    """
    job, inventory = loaded.job, loaded.inventory
    if inventory.backend == "slurm" and index == 0:
        return (sbatch_file(inventory, job, python, templates),)
    if inventory.backend != "modelarts":
        return ()
    text = templates.render("modelarts_start.sh.j2", job=job.name, python=python)
    return (PlanFile("start.sh", text, 0o755),)


def service_facts(loaded: LoadedJob) -> dict[str, Any]:
    """The inventory's section of the service, with what it needs of the job.

    ``attempts``: of a run on Slurm whose attempts wait in the queue one behind the other; nobody else restarts it.
    """
    facts, job, inventory = loaded.inventory.service, loaded.job, loaded.inventory
    if inventory.slurm is not None and inventory.backend == "slurm":
        facts = {"section": facts, "interface": inventory.defaults.interface or ""}
        if inventory.slurm.chain and job.restart.max:
            facts["attempts"] = 1 + job.restart.max
            facts["retry"] = sorted(word for word in RULES if RULES[word].action is not Action.NEVER)
    return facts

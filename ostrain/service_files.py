"""Files a plan has because of its backend: what a service runs in every container."""

from __future__ import annotations

from ostrain.plan import PlanFile
from ostrain.spec.job import JobSpec
from ostrain.templating import Templates


def service_files(backend: str, job: JobSpec, python: str, templates: Templates) -> tuple[PlanFile, ...]:
    """Files of one node beyond ``launch.sh``, ``env.sh`` and the task's configuration; none on listed nodes.

    python: the node's Python, as the inventory or the job names it.
    """
    if backend != "modelarts":
        return ()
    text = templates.render(
        "modelarts_start.sh.j2", job=job.name, python=python, rank_table=job.launcher == "rank_table"
    )
    return (PlanFile("start.sh", text, 0o755),)

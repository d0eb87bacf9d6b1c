"""What a job of ModelArts looks like before anything is sent: the request, and the same job for ``ma-cli``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from cluster.bundle import build_bundle
from cluster.modelarts_job import BY_HAND, create_body, ma_cli_yaml
from cluster.modelarts_run import archives, code_files
from ostrain.errors import OstrainError
from ostrain.plan import LaunchPlan


def by_hand_id(plan: LaunchPlan) -> str:
    """The run id of a job that ``ma-cli`` starts."""
    return f"{plan.name}-{BY_HAND}"


def service_texts(plan: LaunchPlan) -> Iterator[tuple[str, str]]:
    """(title, text) of what goes to the service. A submit has a run id of its own in the place of ``by-hand``."""
    yield "request to ModelArts", json.dumps(create_body(plan, by_hand_id(plan), 1, {}), indent=2)
    yield "ma-cli.yaml", ma_cli_yaml(plan)


def write_ma_cli(plan: LaunchPlan, folder: Path) -> list[Path]:
    """Write ``ma-cli.yaml`` and the folder ``code/`` it wants. OstrainError for other backends, jobs with secrets, and
    folders that are not empty."""
    if plan.backend != "modelarts":
        raise OstrainError(
            f"--ma-cli is for jobs on ModelArts; this one is for backend {plan.backend}",
            next_step="name an inventory with `backend: modelarts` under `cluster:`",
            exit_code=2,
        )
    if plan.secrets:
        raise OstrainError(
            f"secrets ({', '.join(sorted(plan.secrets))}) cannot travel in files",
            next_step="use ostrain submit, or take them out of the job's and the inventory's env",
            exit_code=2,
        )
    if folder.exists() and any(folder.iterdir()):
        raise OstrainError(f"{folder} is not empty", next_step="name a new or empty folder", exit_code=2)
    bundle = build_bundle()
    contents = {f"code/{name}": data for name, data in code_files(by_hand_id(plan), plan, bundle).items()}
    contents |= {f"code/{name}": path.read_bytes() for name, path in archives(plan, bundle).items()}
    contents["ma-cli.yaml"] = ma_cli_yaml(plan).encode()
    written = []
    for name, data in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        written.append(path)
    return written

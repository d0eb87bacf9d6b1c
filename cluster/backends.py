"""Backends by name. Each is imported when it is asked for: ``ostrain status`` of a local run needs no paramiko."""

from __future__ import annotations

import importlib

from cluster.backend import Backend
from ostrain.errors import OstrainError
from ostrain.plan import LaunchPlan

_MODULES = {
    "local": "cluster.local_backend",
    "ssh": "cluster.ssh_backend",
    "slurm": "cluster.slurm_backend",
    "modelarts": "cluster.modelarts_backend",
}


def get(name: str) -> Backend:
    """A new backend. Its ``close`` ends its connections."""
    if name not in _MODULES:
        raise OstrainError(f"no backend {name!r}", next_step="use one of " + ", ".join(sorted(_MODULES)), exit_code=2)
    backend: Backend = importlib.import_module(_MODULES[name]).open_backend()
    return backend


def open_backend(plan: LaunchPlan) -> Backend:
    """The backend a plan was compiled for."""
    return get(plan.backend)

"""The payload's tasks: what a job may ask for, the configuration of each, and the module that does it."""

from __future__ import annotations

from dataclasses import dataclass

from models.config.running import TaskConfig
from models.config.train import TrainConfig


@dataclass(frozen=True)
class TaskKind:
    """``python -m models.<name> --config <name>.yaml`` runs it; a job's key ``<name>`` is its configuration."""

    name: str
    config: type[TaskConfig]
    what: str


TASKS = {kind.name: kind for kind in (TaskKind("train", TrainConfig, "trains a diffusion transformer"),)}

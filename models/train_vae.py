"""Trains autoencoders: ``python -m models.train_vae --config train_vae.yaml [--run-dir .]``, alone or under msrun.

Files, environment and exit codes are those of :mod:`models.train`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from models.config.train_vae import TrainVaeConfig, unrunnable_vae
from models.exits import BAD_CONFIG, PayloadError
from models.settings import read_task_config
from models.task import Task, run_task


def read(path: Path) -> TrainVaeConfig:
    """The configuration in ``path``. PayloadError(BAD_CONFIG) lists all problems."""
    config = read_task_config(path, TrainVaeConfig)
    problems = [f"{'.'.join(place)}: {why}" for place, why in unrunnable_vae(config)]
    if problems:
        why = "\n    ".join(["", *problems])
        raise PayloadError(BAD_CONFIG, "configuration cannot be trained", where=str(path), why=why)
    return config


def train(config: TrainVaeConfig, task: Task) -> None:
    """Trains on this rank, to the end."""
    from models.vae_trainer import VaeTrainer

    trainer = VaeTrainer(config, task.run_dir, task.world, task.report, task.log)
    try:
        trainer.run()
    finally:
        task.step = trainer.step


def main(arguments: list[str] | None = None) -> int:
    return run_task("train_vae", __doc__ or "", read, train, arguments)


if __name__ == "__main__":
    sys.exit(main())

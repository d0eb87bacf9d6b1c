"""Trains: ``python -m models.train --config train.yaml [--run-dir .]``, alone or as one worker of msrun.

Reads RANK_ID and RANK_SIZE of the launcher; OSTRAIN_NODE and OSTRAIN_ATTEMPT where there is an agent. Writes the files
of docs/run-directory.md. Exit codes: 0 done, 64-68 as in models/exits.py, 1 for anything else.
"""

from __future__ import annotations

import sys
from pathlib import Path

from models.config import TrainConfig
from models.task import Task, run_task


def read(path: Path) -> TrainConfig:
    """The checked configuration in ``path``. PayloadError."""
    # Imports numpy, whose threads are set when it is imported.
    from models.settings import read_config

    return read_config(path)


def train(config: TrainConfig, task: Task) -> None:
    """Trains on this rank, to the end."""
    from models.trainer import Trainer

    trainer = Trainer(config, task.run_dir, task.world, task.report, task.log)
    try:
        trainer.run()
    finally:
        task.step = trainer.step


def main(arguments: list[str] | None = None) -> int:
    return run_task("train", __doc__ or "", read, train, arguments)


if __name__ == "__main__":
    sys.exit(main())

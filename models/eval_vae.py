"""Measures autoencoders: ``python -m models.eval_vae --config eval_vae.yaml [--run-dir .]``, alone or under msrun.

Every clip is coded and decoded and compared with itself: PSNR, SSIM and, with weights of VGG16, LPIPS. Ranks share the
clips. Writes ``<output>/clips.jsonl`` (a line as soon as a clip is done), ``results.json`` and ``results.csv``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from models.config.eval_vae import EvalVaeConfig
from models.settings import read_task_config
from models.task import Task, run_task


def read(path: Path) -> EvalVaeConfig:
    """The configuration in ``path``. PayloadError(BAD_CONFIG) lists all problems."""
    return read_task_config(path, EvalVaeConfig)


def evaluate(config: EvalVaeConfig, task: Task) -> None:
    """This rank's clips."""
    from models.vae.evaluate import Evaluator

    Evaluator(config, task).run()


def main(arguments: list[str] | None = None) -> int:
    return run_task("eval_vae", __doc__ or "", read, evaluate, arguments)


if __name__ == "__main__":
    sys.exit(main())

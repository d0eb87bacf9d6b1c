"""Encodes clips: ``python -m models.cache_latents --config cache_latents.yaml [--run-dir .]``, alone or under msrun.

Writes ``<out>/<video path without suffix>.npz``, or ``<out>/latent_<height>x<width>/…`` for several sizes, with
``latent_mean`` and ``latent_std`` float32 [T, C, h, w], ``fps`` and ``ori_size`` (:mod:`models.data.latents` tells what
the numbers are), and ``cache.json`` that tells how they were made. Ranks share the clips; what is there and whole is
kept, so it may be started again at any time. Files appear whole. Clips that cannot be decoded are named and left out.
"""

from __future__ import annotations

import sys
from pathlib import Path

from models.config.cache_latents import CacheLatentsConfig
from models.exits import BAD_CONFIG, PayloadError
from models.task import Task, run_task


def read(path: Path) -> CacheLatentsConfig:
    """The checked configuration in ``path``. PayloadError."""
    from models.settings import read_task_config

    config = read_task_config(path, CacheLatentsConfig)
    for key in ("annotations", "out"):
        if not getattr(config, key):
            raise PayloadError(BAD_CONFIG, f"{key} is not set", where=str(path), next_step=f"set {key} to its path")
    return config


def cache(config: CacheLatentsConfig, task: Task) -> None:
    """This rank's clips."""
    from models.data.encoding import encode_all

    encode_all(config, task)


def main(arguments: list[str] | None = None) -> int:
    return run_task("cache_latents", __doc__ or "", read, cache, arguments)


if __name__ == "__main__":
    sys.exit(main())

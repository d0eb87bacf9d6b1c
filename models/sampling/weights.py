"""Weights to sample with, wherever they are: a file, a published model's folder, a checkpoint, a run directory."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.checkpoint import folder as folders
from models.checkpoint.convert import export_keys
from models.checkpoint.manifest import MANIFEST, STATE
from models.checkpoint.read import read_tensors_of, whole_manifest
from models.convert.files import open_weights
from models.convert.stored import Weights, of_array
from models.exits import BAD_CHECKPOINT, PayloadError

_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Source:
    """Where weights are. step: of a checkpoint, None for files. config: what its run was told, empty for files."""

    path: Path
    step: int | None
    config: dict[str, Any]

    def mark(self) -> str:
        """Changes when the weights do: other files, or newer ones."""
        stat = (self.path if self.step is None else self.path / MANIFEST).stat()
        return f"{self.path} {stat.st_size} {stat.st_mtime_ns}"


def find_weights(path: Path) -> Source:
    """``step-N``, a run directory (its newest step), or whatever :func:`models.convert.files.open_weights` reads.

    PayloadError(BAD_CHECKPOINT) where there is nothing, or a checkpoint without its facts.
    """
    if not path.exists():
        raise _bad(path, "weights do not exist", "", "correct sample.weights")
    step = _STEP.fullmatch(path.name)
    if step and (path / MANIFEST).exists():
        return _checkpoint(path, int(step[1]))
    for below in (path / "checkpoints", path):
        steps = folders.steps(below) if below.is_dir() else []
        if steps:
            return _checkpoint(folders.step_path(below, steps[-1]), steps[-1])
    if path.is_dir():
        open_weights(path)  # tells what is missing before anything else is asked for
    return Source(path, None, {})


def _checkpoint(path: Path, step: int) -> Source:
    try:
        state = json.loads((path / STATE).read_text())
    except (OSError, ValueError) as error:
        raise _bad(path / STATE, "a checkpoint's facts cannot be read", str(error), "name another checkpoint") from None
    config = state.get("config")
    return Source(path, step, config if isinstance(config, dict) else {})


def read_weights(source: Source, use_ema: bool) -> tuple[Weights, str]:
    """All weights by name, and what they are, for people. Averages where the checkpoint has them and they are wanted.

    PayloadError(BAD_CHECKPOINT) for damaged or missing parts.
    """
    if source.step is None:
        opened = open_weights(source.path)
        section = f", section {opened.section}" if opened.section else ""
        return opened.weights, f"weights of {opened.path} ({opened.format}{section})"
    manifest = whole_manifest(source.path)
    averaged = use_ema and "ema" in manifest.kinds
    weights = read_tensors_of(source.path, manifest, export_keys(manifest, ema=averaged))
    what = f"{'moving averages' if averaged else 'weights'} of {source.path}"
    return {name: of_array(value) for name, value in weights.items()}, what


def _bad(path: Path, what: str, why: str, next_step: str) -> PayloadError:
    return PayloadError(BAD_CHECKPOINT, what, where=str(path), why=why, next_step=next_step)

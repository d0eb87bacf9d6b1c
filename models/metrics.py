"""Metrics of every step as JSON lines; TensorBoard event files from rank 0."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from models.files import append, end_last_line


@dataclass(frozen=True)
class StepMetrics:
    """One line of ``metrics/rank-N.jsonl``.

    steps: of the whole training; null where nobody knows before. loss, grad_norm: of the global batch, the same on
    every rank; null when not finite. seconds: wall time of the step, data_wait of it spent waiting for samples.
    tokens_per_s, samples: over all ranks. memory: peak bytes of this process (CPU) or device. skipped: samples dropped
    since the start of the run because their clip did not decode; dropped: steps dropped since then because loss or
    gradients were not finite. comm: by kind of collective, calls and bytes this rank sent in the step
    (models/parallel/traffic.py). comm_wait: seconds of the step inside collectives, waiting for slower ranks among
    them; null on steps where they are not timed. losses: parts of the loss by name, where it has any.
    """

    step: int
    steps: int | None
    attempt: int
    time: float
    loss: float
    grad_norm: float
    lr: float
    seconds: float
    data_wait: float
    tokens_per_s: float
    samples: int
    shape: str
    memory: int
    skipped: int
    dropped: int
    comm: dict[str, tuple[int, int]]
    comm_wait: float | None = None
    losses: dict[str, float] = field(default_factory=dict)


class MetricsFile:
    """Appends one line a step with a single write."""

    def __init__(self, run_dir: Path, rank: int) -> None:
        self.path = run_dir / "metrics" / f"rank-{rank}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        end_last_line(self.path)

    def write(self, metrics: StepMetrics) -> None:
        record = {key: _finite(value) for key, value in asdict(metrics).items()}
        record["losses"] = {key: _finite(value) for key, value in metrics.losses.items()}
        if not metrics.losses:
            del record["losses"]
        append(self.path, (json.dumps(record) + "\n").encode())


class TensorBoard:
    """Event files in ``tensorboard/``. tensorboardX is imported when the first one is made."""

    def __init__(self, run_dir: Path, purge_step: int) -> None:
        from tensorboardX import SummaryWriter

        # Steps after the checkpoint a run resumes from are written again: the old ones are hidden.
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge_step or None, flush_secs=10)

    def write(self, metrics: StepMetrics) -> None:
        for name in ("loss", "grad_norm", "lr", "seconds", "data_wait", "tokens_per_s", "memory"):
            self._writer.add_scalar(f"train/{name}", getattr(metrics, name), metrics.step)
        for name, value in metrics.losses.items():
            self._writer.add_scalar(f"losses/{name}", value, metrics.step)

    def write_validation(self, step: int, loss: float, by_shape: Mapping[str, float]) -> None:
        self._writer.add_scalar("validation/loss", loss, step)
        for shape, value in by_shape.items():
            self._writer.add_scalar(f"validation/{shape}", value, step)

    def close(self) -> None:
        self._writer.close()


def peak_memory(device: str) -> int:
    """Peak bytes: of the device's memory on Ascend, of this process on CPU."""
    if device == "Ascend":
        import mindspore as ms

        return int(ms.runtime.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _finite(value: Any) -> Any:
    """JSON has no NaN: a number that is not finite becomes null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value

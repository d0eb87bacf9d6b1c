"""What a rank tells while it samples: heartbeat and a line of metrics a step, lines of the log now and then."""

from __future__ import annotations

import json
import time
from pathlib import Path

from models.events import Log, Reporter
from models.files import append, end_last_line
from models.metrics import peak_memory

# Seconds between lines of the log while steps come.
_EVERY = 10.0


class Progress:
    """Counts steps of this rank: network evaluations, and one for each result that is decoded and written.

    total: of all steps. Metrics have ``step, steps, attempt, time, seconds, memory, phase``.
    """

    def __init__(self, run_dir: Path, report: Reporter, log: Log, device: str, total: int) -> None:
        self.step, self.total = 0, total
        self._report, self._log, self._device = report, log, device
        self._path = run_dir / "metrics" / f"rank-{report.rank}.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        end_last_line(self._path)
        self._last = self._told = time.perf_counter()

    def begin(self, phase: str) -> None:
        """What the next step waits for."""
        self._report.heartbeat(self.step, phase)
        self._last = time.perf_counter()

    def done(self, phase: str = "step") -> None:
        """One more step is done."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        self.step += 1
        record = {
            "step": self.step,
            "steps": self.total,
            "attempt": self._report.attempt,
            "time": time.time(),
            "seconds": seconds,
            "memory": peak_memory(self._device),
            "phase": phase,
        }
        append(self._path, (json.dumps(record) + "\n").encode())
        self._report.heartbeat(self.step, phase)
        if now - self._told > _EVERY:
            self._told = now
            self._log.info(f"step {self.step}/{self.total} {seconds:.2f} s/step")

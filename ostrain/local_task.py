"""A task of the payload in child processes of this machine: started, watched, stopped, its error told.

It has a run directory like any other run (docs/run-directory.md), but no agent: it ends with the command that started
it. Runs that shall outlive their client are jobs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cluster.agent import prctl
from cluster.local import clean_environment
from cluster.ports import free_port
from ostrain.errors import OstrainError
from ostrain.states import ExitCode

_POLL = 0.2
# Seconds between asking processes to end and making them.
_GRACE = 5.0
# What a login shell or an outer run may have left behind would misplace ranks.
_LAUNCHERS = ("MS_ROLE", "MS_NODE_ID", "MS_SCHED_", "MS_WORKER_", "MS_TOPO_TIMEOUT", "RANK_", "DEVICE_ID",
              "OMPI_COMM_WORLD_", "MINDSPORE_HCCL_CONFIG_PATH")  # fmt: skip
_TAIL = 2000


@dataclass
class Tail:
    """Whole lines of a JSON-lines file, from where it ended when the task began."""

    path: Path
    offset: int = field(init=False)

    def __post_init__(self) -> None:
        self.offset = self.path.stat().st_size if self.path.exists() else 0

    def lines(self) -> Iterator[dict[str, Any]]:
        """Records that came since the last call."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read()
        end = data.rfind(b"\n") + 1
        self.offset += end
        for line in data[:end].splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # what an interrupted process left unfinished
            if isinstance(record, dict):
                yield record


def _interrupt(*_: object) -> None:
    """A command that is told to end ends what it started, as on Ctrl-C."""
    raise KeyboardInterrupt


class LocalTask:
    """One attempt of ``python -m models.<name>`` with a configuration, alone or under msrun."""

    def __init__(self, name: str, config: dict[str, Any], run_dir: Path, workers: int = 1) -> None:
        """run_dir is made; what earlier attempts left in it stays. OstrainError where that cannot be."""
        self.name, self.run_dir, self.workers = name, run_dir, workers
        self.attempt = 1 + max(
            (int(path.name.rpartition("-")[2]) for path in run_dir.glob("logs/attempt-*")), default=0
        )
        self.logs = run_dir / "logs" / f"attempt-{self.attempt}"
        try:
            self.logs.mkdir(parents=True)
            (run_dir / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        except OSError as error:
            raise OstrainError(
                f"the folder of the run cannot be written: {error.strerror}", where=str(error.filename or run_dir),
                next_step="choose another folder", exit_code=int(ExitCode.USAGE),
            ) from None  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self._before: Any = None

    def __enter__(self) -> LocalTask:
        with (self.logs / ("launcher.log" if self.workers > 1 else "worker_0.log")).open("wb") as log:
            # A session of its own: all its processes can be ended together, and Ctrl-C reaches us first.
            self._process = subprocess.Popen(
                self._command(), cwd=self.run_dir, env=self._environment(), stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=self._die_with_us,
            )  # fmt: skip
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, _interrupt)
        return self

    def _die_with_us(self) -> None:
        """Runs in the child: whatever happens to us, it does not go on alone. msrun ends its workers on SIGINT only."""
        prctl(1, signal.SIGKILL if self.workers == 1 else signal.SIGINT)  # PR_SET_PDEATHSIG

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            if self._before is not None:
                signal.signal(signal.SIGTERM, self._before)

    def wait(self) -> Iterator[None]:
        """Comes back now and then until the task has ended."""
        assert self._process is not None
        while self._process.poll() is None:
            yield
            time.sleep(_POLL)

    def stop(self) -> None:
        """Ends every process of the task that is still there. msrun alone would leave its workers."""
        assert self._process is not None
        for sent, patience in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, _GRACE)):
            if not self._signal(sent):
                break
            deadline = time.monotonic() + patience
            while time.monotonic() < deadline and self._signal(0):
                self._process.poll()
                time.sleep(0.05)
        self._process.wait()

    def _signal(self, number: int) -> bool:
        """Whether there was anybody to send the signal to."""
        assert self._process is not None
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return False
        return True

    def check(self) -> None:
        """OstrainError with the first fault where the task failed."""
        assert self._process is not None
        code = self._process.wait()
        faults = sorted((self.run_dir / "faults" / f"attempt-{self.attempt}").glob("rank-*.json"))
        if code == 0 and not faults:
            return
        if faults:
            fault = min((json.loads(path.read_text()) for path in faults), key=lambda told: told.get("time", 0.0))
            raise OstrainError(
                str(fault["what"]), where=str(fault["where"]), why=str(fault["why"]), next_step=str(fault["next"]),
                exit_code=int(ExitCode.RUN_FAILED),
            )  # fmt: skip
        log = self.logs / "worker_0.log"
        said = log.read_text(errors="replace")[-_TAIL:] if log.exists() else ""
        raise OstrainError(
            f"{self.name} ended with code {code}", where=str(self.logs), why=said.strip(),
            next_step=f"read the logs in {self.logs}", exit_code=int(ExitCode.RUN_FAILED),
        )  # fmt: skip

    def _command(self) -> list[str]:
        worker = ["-m", f"models.{self.name}", "--config", f"{self.name}.yaml", "--run-dir", str(self.run_dir)]
        if self.workers == 1:
            return [sys.executable, *worker]
        msrun = shutil.which("msrun", path=self._environment()["PATH"])
        if msrun is None:
            raise OstrainError(
                "there is no msrun to start several workers with", where=str(Path(sys.executable).parent),
                next_step="install MindSpore there, or use --workers 1", exit_code=int(ExitCode.PREFLIGHT),
            )  # fmt: skip
        return [
            msrun, f"--worker_num={self.workers}", f"--local_worker_num={self.workers}", "--master_addr=127.0.0.1",
            f"--master_port={free_port()}", f"--log_dir={self.logs}", "--join=True",
            f"--tail_worker_log={self.workers}", "python", *worker,
        ]  # fmt: skip

    def _environment(self) -> dict[str, str]:
        import models

        names = {key: value for key, value in clean_environment().items() if not key.startswith(_LAUNCHERS)}
        bundle = str(Path(models.__path__[0]).parent)
        # msrun starts whatever `python` comes first on PATH.
        return {
            **names,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{names.get('PATH', os.defpath)}",
            "PYTHONPATH": os.pathsep.join([bundle, *filter(None, [names.get("PYTHONPATH")])]),
            "PYTHONUNBUFFERED": "1",
            "OSTRAIN_ATTEMPT": str(self.attempt),
        }

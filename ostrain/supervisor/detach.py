"""A supervisor of its own: a process that outlives the command that started it, and its terminal."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from ostrain.errors import OstrainError
from ostrain.states import ExitCode
from ostrain.store import Store
from ostrain.supervisor.journal import folder

TAKES = 20.0  # seconds within which a new supervisor has taken the run over
_LOG = "supervisor.log"


def log_path(run_id: str) -> Path:
    """Where a detached supervisor writes what it would tell a terminal."""
    return folder(run_id) / _LOG


def start_detached(store: Store, run_id: str) -> int:
    """Start ``ostrain supervise`` in a session of its own and wait until it has the run; its pid.

    It reads secrets again by itself: from the environment, which it inherits, or their files. OstrainError where it
    ends at once.
    """
    path = log_path(run_id)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(path, "ab") as log, open(os.devnull, "rb") as null:
        child = subprocess.Popen(
            [sys.executable, "-m", "ostrain", "supervise", "--background", run_id],
            stdin=null, stdout=log, stderr=log, env=_environment(), start_new_session=True, cwd="/",
        )  # fmt: skip
    deadline = time.monotonic() + TAKES
    while time.monotonic() < deadline:
        pid = store.get(run_id).supervisor.split(":")[0]
        if pid == str(child.pid):
            return child.pid
        if child.poll() is not None:
            break
        time.sleep(0.05)
    if child.poll() == int(ExitCode.OK):  # the run had ended before it came
        return child.pid
    raise OstrainError(
        f"no supervisor of {run_id} came up; the run goes on without one",
        where=str(path),
        why=_last_line(path),
        next_step=f"ostrain supervise {run_id}",
    )


def _environment() -> dict[str, str]:
    """Ours, with the folder that this package was imported from: a checkout need not be installed."""
    home = str(Path(__file__).resolve().parents[2])
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([home, *(path for path in known if path and path != home)])}


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""

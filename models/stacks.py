"""Stacks on demand: on SIGUSR1 a worker writes where each of its Python threads is.

The handler is faulthandler's, in C: it needs neither the interpreter's lock nor a bytecode to finish, so it answers
from inside a collective that never returns. Imports no MindSpore.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from pathlib import Path

from models.events import attempt

_STDERR = 2


def path_of(run_dir: Path, rank: int) -> Path:
    """Where the stacks of a rank go (docs/run-directory.md)."""
    return run_dir / "stacks" / f"attempt-{attempt()}" / f"rank-{rank}.txt"


def arm(run_dir: Path, rank: int) -> None:
    """From now on SIGUSR1 appends the stacks of all threads, and a crash of the process leaves them in its log.

    Whoever sends the signal looks for the file and the handler first: a process without one would end by the signal.
    OSError where the file cannot be made.
    """
    path = path_of(run_dir, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In append mode: whoever reads the file may cut it to nothing between two dumps. Open as long as the process lives.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    faulthandler.register(signal.SIGUSR1, file=descriptor, all_threads=True)
    if not faulthandler.is_enabled():
        faulthandler.enable(file=_STDERR, all_threads=True)

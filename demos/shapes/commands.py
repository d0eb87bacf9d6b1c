"""ostrain's own commands, as a person would give them, in a home of the story's own."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class CommandFailed(Exception):
    """A command that did not succeed; what it printed has been shown."""


class Commands:
    """Runs ``ostrain …`` and shows every command before it.

    home: runs, logs and the run store live below it, so that the story touches nothing else of this machine.
    """

    def __init__(self, home: Path) -> None:
        self._environment = {
            **os.environ,
            "XDG_STATE_HOME": str(home / "state"),
            "XDG_CACHE_HOME": str(home / "cache"),
            "PYTHONUNBUFFERED": "1",
        }

    def run(self, *arguments: str | Path) -> str:
        """Standard output of the command; its standard error goes to the terminal. CommandFailed."""
        words = [str(word) for word in arguments]
        print(f"\n$ ostrain {shlex.join(words)}", flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "ostrain", *words], env=self._environment, stdout=subprocess.PIPE, text=True
        )
        if done.returncode:
            print(done.stdout, end="", flush=True)
            raise CommandFailed(f"ostrain {words[0]} ended with exit code {done.returncode}")
        return done.stdout

    def data(self, *arguments: str | Path) -> Any:
        """What the command prints with ``--json``."""
        return json.loads(self.run(*arguments, "--json"))

    def submit(self, job: Path, settings: Sequence[str] = ()) -> str:
        """Submits a job and watches it to its end; the run's name."""
        told = self.data("submit", job, "--follow", *(word for one in settings for word in ("--set", one)))
        return str(told["run_id"])

"""``ostrain`` as a user runs it: in processes of its own, so that a drill sees what a user would see."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ostrain.errors import OstrainError

SUBMIT_BOUND = 900.0
SHORT_BOUND = 180.0


class Commands:
    """Runs commands; their talk goes to files in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._children: list[subprocess.Popen[bytes]] = []

    def submit(self, job: str, settings: Sequence[str], *, follow: bool) -> str:
        """Submit and return the run's id. follow: the client stays and supervises in the foreground."""
        words = ["submit", job, *(word for one in settings for word in ("--set", one))]
        child = self.start([*words, "--follow"] if follow else words, "submit")
        deadline = time.monotonic() + SUBMIT_BOUND
        while not (run_id := self._first_line("submit")) or (not follow and child.poll() is None):
            if child.poll() not in (None, 0):
                raise _failed(words, child.returncode, self.talk("submit"))
            if time.monotonic() > deadline:
                child.kill()
                raise OstrainError(f"`ostrain submit {job}` took longer than {SUBMIT_BOUND:.0f} s")
            time.sleep(0.05)
        if not follow and child.returncode != 0:
            raise _failed(words, child.returncode, self.talk("submit"))
        return run_id

    def _first_line(self, name: str) -> str:
        lines = (self.folder / f"{name}.out").read_text(errors="replace").splitlines(keepends=True)
        return lines[0].strip() if lines and lines[0].endswith("\n") else ""

    def call(self, *words: str, check: bool = True) -> str:
        """Run a command to its end; its standard output."""
        done = subprocess.run(_argv(words), capture_output=True, text=True, timeout=SHORT_BOUND, check=False)
        if check and done.returncode != 0:
            raise _failed(words, done.returncode, done.stderr)
        return done.stdout

    def start(self, words: Sequence[str], name: str) -> subprocess.Popen[bytes]:
        """Start a command in a session of its own: Ctrl-C at this terminal is ours."""
        with (self.folder / f"{name}.out").open("wb") as out, (self.folder / f"{name}.err").open("wb") as err:
            child = subprocess.Popen(
                _argv(words), stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )
        self._children.append(child)
        return child

    def talk(self, name: str) -> str:
        return (self.folder / f"{name}.err").read_text(errors="replace")

    def kill_children(self) -> None:
        """SIGKILL to what was started and still lives."""
        for child in self._children:
            if child.poll() is None:
                child.kill()
            child.wait(10.0)

    def end(self, child: subprocess.Popen[bytes], patience: float) -> None:
        """Let a command come to its end; then interrupt it, then kill it."""
        for number in (None, signal.SIGINT, signal.SIGKILL):
            if number is not None:
                child.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(patience if number is None else 10.0)
                return


def _argv(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "ostrain", *words]


def _failed(words: Sequence[str], code: int, talk: str) -> OstrainError:
    return OstrainError(f"`ostrain {words[0]}` ended with {code}", why=talk.strip()[-3000:], exit_code=code)

"""The live view: a frame twice a second, q to leave, resize at any time. It only reads: the run knows nothing of it."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from typing import Any

from ostrain.errors import OstrainError
from ostrain.store import Run
from ostrain.top.board import Board
from ostrain.top.events import Told, supervisor_lines
from ostrain.top.frame import Size, frame
from ostrain.top.source import Feed

PAUSE = 0.5  # seconds between two frames
JOURNAL = 2.0  # seconds between two looks at the supervisor's journal


class Live:
    """A run on the screen until it ends, ``q`` or Ctrl-C (KeyboardInterrupt)."""

    def __init__(self, run: Run, console: Any) -> None:
        self.board = Board(run)
        self.console = console
        self._feed = Feed(run)
        self._journal: list[Told] = []
        self._looked = 0.0
        self._problem = ""

    def show(self) -> bool:
        """Whether the run was watched to its end; False where the watching was left."""
        from rich.live import Live as Screen

        self._feed.start()
        try:
            with keys() as pressed, Screen(console=self.console, screen=True, auto_refresh=False) as screen:
                while True:
                    ended = self._take()
                    screen.update(self._picture(), refresh=True)
                    if ended:
                        return True
                    if pressed(PAUSE) in ("q", "Q", "\x1b"):
                        return False
        finally:
            self._feed.stop()

    def _take(self) -> bool:
        """What came since the last frame; whether that was all."""
        moment = time.time()
        for item in self._feed.waiting():
            if item is None:
                return True
            if isinstance(item, OstrainError):
                self._problem = item.what
            elif isinstance(item, Run):
                self.board = self.board.moved(item)
            elif isinstance(item, dict):
                for name, degrees in item.items():
                    if name in self.board.nodes:
                        self.board.nodes[name].temperatures = degrees
            else:
                self.board.take(item, moment)
        return False

    def _picture(self) -> Any:
        moment = time.time()
        if moment - self._looked > JOURNAL:
            self._looked, self._journal = moment, supervisor_lines(self.board.run.run_id)
        size = self.console.size
        hint = self._problem or "q leaves; the run goes on"
        return frame(
            self.board, Size(size.width, size.height), moment, [*self.board.events, *self._journal], hint=hint,
            plain=not unicode_ok(self.console.encoding),
        )  # fmt: skip


def unicode_ok(encoding: str) -> bool:
    return "utf" in encoding.lower()


@contextlib.contextmanager
def keys() -> Iterator[Any]:
    """A function that waits for a key, at most so many seconds, and returns it or "". The terminal is put back."""
    if not sys.stdin.isatty():
        yield _no_key
        return
    handle = sys.stdin.fileno()
    before = termios.tcgetattr(handle)
    try:
        tty.setcbreak(handle)  # Ctrl-C still interrupts
        yield lambda seconds: _key(handle, seconds)
    finally:
        termios.tcsetattr(handle, termios.TCSADRAIN, before)


def _no_key(seconds: float) -> str:
    time.sleep(seconds)
    return ""


def _key(handle: int, seconds: float) -> str:
    if not select.select([handle], [], [], seconds)[0]:
        return ""
    data = os.read(handle, 64)
    return data.decode("utf-8", "replace") if data else "q"  # the terminal is gone

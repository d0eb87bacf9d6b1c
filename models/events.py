"""What a worker tells about itself: log lines, metrics, heartbeat, events. All files of docs/run-directory.md."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from models.files import append, write_atomic
from models.masking import masked


class Log:
    """Lines ``2026-01-02T03:04:05.678Z INFO …`` in UTC, flushed one by one."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout

    def info(self, text: str) -> None:
        self._write("INFO", text)

    def warning(self, text: str) -> None:
        self._write("WARNING", text)

    def error(self, text: str) -> None:
        self._write("ERROR", text)

    def _write(self, level: str, text: str) -> None:
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
        # One write a line: lines of threads and of the launcher do not mix.
        lines = "".join(f"{stamp} {level} {line}\n" for line in text.splitlines() or [""])
        self._stream.write(lines)
        self._stream.flush()


class Reporter:
    """Events and heartbeat of one rank in a run directory; node and attempt come from the environment."""

    def __init__(self, run_dir: Path, rank: int) -> None:
        self.run_dir, self.rank = run_dir, rank
        self.node = os.environ.get("OSTRAIN_NODE") or socket.gethostname()
        self.attempt = attempt()
        self._heartbeat = run_dir / "heartbeat" / f"rank-{rank}"

    def event(self, name: str, **facts: Any) -> None:
        """Appends one event, synced to disk."""
        record = {
            "time": time.time(),
            "node": self.node,
            "attempt": self.attempt,
            "event": name,
            "rank": self.rank,
            **facts,
        }
        append(self.run_dir / "events.jsonl", _line(masked(record)), sync=True)

    def heartbeat(self, step: int, phase: str) -> None:
        """Replaces the heartbeat file as a whole; phase: starting, loading, compiling, step, saving or done.

        Not synced: it says what happens now, a crash ends its meaning.
        """
        record = {"step": step, "time": time.time(), "phase": phase}
        write_atomic(self._heartbeat, _line(record), sync=False)


def attempt() -> int:
    """The attempt this process belongs to; 1 when nobody counts."""
    value = os.environ.get("OSTRAIN_ATTEMPT", "1")
    return int(value) if value.isdigit() else 1


def _line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape")

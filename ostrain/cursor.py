"""Exactly-once output of followed logs, across followers that are killed at any moment.

A follower keeps a small cursor file: byte offsets up to which everything has been shown, and, while a batch is being
written, that batch itself with the place in the output file where it goes. Whoever follows next finds three cases:
no batch pending (go on from the offsets); the output file, if it is a regular one, has grown by the batch or by a
part of it (show only the rest); or nothing of it (show it all). Where the output was a pipe or a terminal the write
cannot be checked afterwards: a batch whose writer died within the microseconds around it is shown again, never lost.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

Offsets = dict[str, dict[str, int]]


class OutputCursor:
    """The cursor of one selection of one run's lines. ``held`` is False where a live follower has it already; such a
    second follower starts from the beginning and keeps no cursor."""

    def __init__(self, folder: Path, selection: str, output_fd: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        name = hashlib.sha256(selection.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        self._path = folder / f"{name}.json"
        self._fd = output_fd
        self._lock = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.held = True
        except BlockingIOError:
            self.held = False
        self.offsets: Offsets = {}

    def restore(self) -> bytes:
        """Load the offsets of an earlier follower. Returns what it still owed: the unwritten rest of its last batch."""
        record = self._read() if self.held else None
        if record is None:
            return b""
        self.offsets = record["offsets"]
        pending = record.get("pending")
        if pending is None:
            return b""
        self.offsets = pending["offsets"]
        batch = base64.b64decode(pending["batch"])
        return batch[_written(pending["output"], len(batch)) :]

    def _read(self) -> dict[str, Any] | None:
        try:
            record = json.loads(self._path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            # An unreadable cursor must not keep anyone from the log: show it from the start.
            return None
        return record if isinstance(record, dict) and "offsets" in record else None

    def write(self, batch: bytes, offsets: Offsets) -> None:
        """Write ``batch`` to the output and move the cursor to ``offsets``, as one step."""
        if batch and self.held:
            encoded = base64.b64encode(batch).decode()
            pending = {"offsets": offsets, "batch": encoded, "output": _position(self._fd)}
            self._save({"offsets": self.offsets, "pending": pending})
        view = memoryview(batch)
        while view:
            view = view[os.write(self._fd, view) :]
        self.offsets = {node: dict(paths) for node, paths in offsets.items()}
        if self.held:
            self._save({"offsets": self.offsets})

    def _save(self, record: dict[str, Any]) -> None:
        # No fsync: the cursor has to survive the death of this process, not that of the machine.
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(record))
        temporary.replace(self._path)

    def finish(self) -> None:
        """Everything was shown: the next follower starts afresh."""
        if self.held:
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self._lock)


def _position(fd: int) -> dict[str, Any] | None:
    """Where the next byte written to a regular file goes; None for pipes and terminals."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return None
    appending = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
    at = status.st_size if appending else os.lseek(fd, 0, os.SEEK_CUR)
    return {"path": os.readlink(f"/proc/self/fd/{fd}"), "device": status.st_dev, "inode": status.st_ino, "at": at}


def _written(output: dict[str, Any] | None, length: int) -> int:
    """How many bytes of a batch reached the output file before its writer died."""
    if output is None:
        return 0
    try:
        status = os.stat(output["path"])
    except OSError:
        return 0
    if (status.st_dev, status.st_ino) != (output["device"], output["inode"]):
        return 0
    return max(0, min(length, int(status.st_size) - int(output["at"])))

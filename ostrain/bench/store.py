"""Results on disk: ``results.json`` of a benchmark, rewritten after every run, and the history of its name.

results.json, format 1: ``bench, file, started, ended, complete, ostrain, code, steps, warmup, repeat, global_batch,
baseline, cases [{label, config, …}], runs [{label, turn, config, code, state, reason, run_id, started, ended,
measured}], rows [Row], going {label, run_id} | null``. history.jsonl: one object an entry and completed benchmark.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ostrain.bench.measure import Measured
from ostrain.errors import OstrainError
from ostrain.paths import state_dir

FORMAT = 1


@dataclass(frozen=True)
class RunResult:
    """One run of an entry. turn: from 1, which repetition. state: done, failed."""

    label: str
    turn: int
    config: str
    code: str
    state: str
    reason: str
    run_id: str
    started: float
    ended: float
    measured: Measured | None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "measured": self.measured.to_dict() if self.measured else None}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RunResult:
        measured = data["measured"]
        return cls(**{**data, "measured": Measured.from_dict(measured) if measured else None})


def default_folder(name: str) -> Path:
    return state_dir() / "bench" / name


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder for this benchmark alone. Raises OstrainError while another one writes there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115 (held until the end)
    except OSError as error:
        raise OstrainError("results cannot be written", where=str(folder), why=str(error)) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OstrainError(
                "another benchmark is at work there",
                where=str(folder),
                next_step="wait for it, or name another folder with --out",
                exit_code=2,
            ) from None
        yield


class Results:
    """``results.json`` in a folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "results.json"

    def read(self) -> dict[str, Any] | None:
        """What an earlier benchmark left, None where there is nothing of use."""
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise OstrainError(
                "the results of an earlier benchmark cannot be read",
                where=str(self.path),
                why=str(error),
                next_step="delete the file, or name another folder with --out",
            ) from error
        return data if isinstance(data, dict) and data.get("format") == FORMAT else None

    def write(self, data: dict[str, Any]) -> None:
        """Replaced as a whole."""
        write_text(self.path, json.dumps({"format": FORMAT, **data}, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole. OSError becomes OstrainError."""
    temporary = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise OstrainError(
            "results cannot be written", where=str(path), why=str(error), next_step="free space or name another --out"
        ) from error


class History:
    """What every completed benchmark of a name measured, oldest first."""

    def __init__(self, name: str) -> None:
        self.path = state_dir() / "bench" / f"{name}.history.jsonl"

    def last(self, label: str, config: str, before: float) -> dict[str, Any] | None:
        """The newest measurement of the same entry with the same configuration before a time: ``time, code, row``."""
        found = None
        for record in self._records():
            if (record.get("label"), record.get("config")) == (label, config) and record["time"] < before:
                found = record
        return found

    def _records(self) -> Iterator[dict[str, Any]]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        for line in text.splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # a line that a full disk or a crash cut off
            if isinstance(record, dict):
                yield record

    def append(self, records: list[dict[str, Any]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as out:
            out.write("".join(json.dumps(record) + "\n" for record in records))

"""Results of a run: which are there already, and ``samples.jsonl``, a line for each that is finished."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.config.sample import SampleConfig
from models.exits import BAD_CONFIG, PayloadError
from models.files import append, end_last_line
from models.sampling.requests import Request

RECORDS = "samples.jsonl"
# Settings that do not change what a result shows.
_BESIDE = ("layout", "max_device_memory", "batch_size", "output", "start_index", "end_index", "prompts", "prompt_path",
           "stage", "num_samples", "recipe", "root", "weights", "jit")  # fmt: skip
_SHOWN = 5


class Results:
    """Finished results by path. ``folder``: where they go."""

    def __init__(self, run_dir: Path, folder: Path, config: SampleConfig, weights: str) -> None:
        """weights: what changes with them."""
        self.folder, self._config = folder, config
        self._path = run_dir / RECORDS
        told = config.model_dump(mode="json", exclude=set(_BESIDE))
        self._settings = weights + json.dumps(told, sort_keys=True)
        self._done = {record["path"]: record for record in read_records(self._path)}

    def key(self, request: Request) -> str:
        """Names what a result shows: settings and request."""
        text = self._settings + json.dumps(vars(request), sort_keys=True)
        return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()

    def open(self, wanted: Sequence[tuple[Path, str]]) -> list[int]:
        """Which of ``wanted`` (path, key) are still to be made. PayloadError where one would replace a stranger."""
        left, strangers = [], []
        for number, (path, key) in enumerate(wanted):
            if not path.exists():
                left.append(number)
                continue
            if self._done.get(str(path), {}).get("key") == key:
                continue
            if self._config.output.existing == "overwrite":
                left.append(number)
            elif self._config.output.existing == "refuse":
                strangers.append(path)
        if strangers:
            more = f" and {len(strangers) - _SHOWN} more" if len(strangers) > _SHOWN else ""
            raise PayloadError(
                BAD_CONFIG,
                "results are there already" if len(strangers) > 1 else "a result is there already",
                where=str(self.folder),
                why=", ".join(path.name for path in strangers[:_SHOWN]) + more,
                next_step="choose another output.dir, or set output.existing to skip or overwrite",
            )
        return left

    def record(self, path: Path, facts: dict[str, Any]) -> None:
        """Appends the line of a finished result."""
        line = json.dumps({"path": str(path), **facts}, ensure_ascii=False) + "\n"
        append(self._path, line.encode("utf-8", "surrogateescape"), sync=True)


def prepare_records(run_dir: Path) -> None:
    """Ends a line that an interrupted run left half written. One rank a run directory calls it, before the others."""
    end_last_line(run_dir / RECORDS)


def read_records(path: Path) -> list[dict[str, Any]]:
    """All whole lines; none where there is no file."""
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # cut short by an interruption: that result is made again
        if isinstance(record, dict) and "path" in record:
            records.append(record)
    return records

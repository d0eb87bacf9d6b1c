"""``ostrain data embed-text`` and ``cache-latents``: a task of the payload on this machine, from options to summary."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from models.config import TaskConfig
from models.config.tasks import TASKS
from ostrain.errors import OstrainError, SpecError
from ostrain.spec.document import DocumentError, Mapping, find, load_document, plain
from ostrain.spec.merge import merge_train
from ostrain.spec.overrides import apply_overrides, parse_overrides
from ostrain.spec.problems import Mark, Source, render_all
from ostrain.spec.recipes import load_recipe
from ostrain.spec.resources import shown_path
from ostrain.spec.translate import validate
from ostrain.states import ExitCode
from ostrain.talk import say

NEXT = "correct the places above; docs/jobs.md explains every key of {}"
# Keys with paths on this machine; a task starts them at its run directory.
_PATHS = ("annotations", "prompts", "videos", "out", "text.pretrained", "autoencoder.pretrained",
          "autoencoder.pretrained_2d")  # fmt: skip
_LOG_LINE = re.compile(r"\S+Z (INFO|WARNING|ERROR) (.*)")


def load_values(task: str, file: Path | None, overrides: Sequence[str]) -> tuple[TaskConfig, dict[str, Any]]:
    """A task's configuration from a YAML file (or nothing) and ``key=value`` texts, and its values as they were said.

    Paths in it are made absolute, from the working directory. SpecError lists every problem with its place.
    """
    tree = Mapping({}, Mark(Source("the command line", "")))
    problems = []
    if file is not None:
        try:
            tree = load_document(file, shown_path(file))
        except DocumentError as error:
            raise SpecError(render_all(error.problems), next_step=NEXT.format(task)) from None
        below = tree.items.get(task)
        tree = below if isinstance(below, Mapping) else tree
    parsed, found = parse_overrides(overrides)
    problems += found
    overridden, found = apply_overrides(tree, parsed)
    problems += found
    recipe, found = load_recipe(find(overridden, ("recipe",)), task)
    problems += found
    if recipe is not None:
        overridden, _ = apply_overrides(merge_train(recipe, tree), parsed)
    config, found, _ = validate(TASKS[task].config, overridden)
    problems += found
    if problems or config is None:
        raise SpecError(render_all(problems), what=f"{len(problems)} problems", next_step=NEXT.format(task))
    return config, _absolute(plain(overridden))


def _absolute(values: dict[str, Any]) -> dict[str, Any]:
    for dotted in _PATHS:
        *sections, key = dotted.split(".")
        place: Any = values
        for section in sections:
            place = place.get(section) or {}
        if isinstance(place.get(key), str) and place[key]:
            place[key] = str(Path.cwd() / Path(place[key]).expanduser())
    return values


def run_task(task: str, values: dict[str, Any], run_dir: Path | None, workers: int) -> dict[str, Any]:
    """Runs it to its end, its log on standard error. The summary. OstrainError with the fault where it failed."""
    from ostrain.local_task import LocalTask

    folder = (run_dir or Path(values["out"]) / ".run").absolute()
    summary = folder / "summary.json"
    summary.unlink(missing_ok=True)
    started = LocalTask(task, values, folder, workers)
    log = _Lines(started.logs / "worker_0.log")
    try:
        with started:
            for _ in started.wait():
                log.relay()
            log.relay()
            started.check()
    except KeyboardInterrupt:
        say("interrupted; the same command goes on with what is missing")
        sys.exit(int(ExitCode.INTERRUPTED))
    try:
        found: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OstrainError(
            f"{task} left no summary", where=str(summary), why=str(error), next_step=f"read the logs in {started.logs}"
        ) from None
    return found


class _Lines:
    """Log lines of a worker, told on standard error as they come; errors are told by who started it."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def relay(self) -> None:
        for line in self._new():
            found = _LOG_LINE.match(line)
            if found and found[1] != "ERROR":
                say(f"warning: {found[2]}" if found[1] == "WARNING" else found[2])

    def _new(self) -> Iterator[str]:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        end = data.rfind(b"\n") + 1
        self._offset += end
        yield from data[:end].decode(errors="replace").splitlines()

"""Secrets must not stand in what is stored and sent: the plan of a job and the files it pushes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from cluster.agent import LEAST_SECRET, spellings
from ostrain.errors import OstrainError
from ostrain.plan import LaunchPlan
from ostrain.states import ExitCode

LEAST = 8  # letters; a shorter value may well stand in a job for other reasons
LARGEST = 1 << 20  # bytes of a pushed file that is looked into; larger ones are videos and weights


def refuse_leaks(plan: LaunchPlan, secrets: Mapping[str, str]) -> None:
    """OstrainError naming every place where a secret's value stands in the plan or in a small pushed file.

    A value in a prompt or an environment value of the job would be stored with the run and copied to every node.
    """
    needles = {name: spellings(value) for name, value in secrets.items() if len(value) >= LEAST}
    if not needles:
        return
    places = [f"{place} holds the value of the secret {plan.secrets.get(name, name)}"
              for name, place in _found(plan, needles)]  # fmt: skip
    if places:
        more = f" and {len(places) - 8} more places" if len(places) > 8 else ""
        raise OstrainError(
            "a secret stands in the job; nothing was stored or sent",
            where="; ".join(places[:8]) + more,
            why="what a job says is stored with the run and copied to its nodes",
            next_step="take it out there; programs find it in their environment: env: {NAME: {secret: name}}",
            exit_code=ExitCode.USAGE,
        )


def _found(plan: LaunchPlan, needles: Mapping[str, set[bytes]]) -> Iterator[tuple[str, str]]:
    """(variable of the secret, place)."""
    seen: set[tuple[str, str]] = set()
    for node in plan.nodes:
        for file in node.files:
            if (file.path, file.text) not in seen:  # most files are the same on all nodes
                seen.add((file.path, file.text))
                yield from _in(f"{file.path} (rendered from the job)", file.text.encode("utf-8", "replace"), needles)
    yield from _in("a name or path of the job", repr((plan.name, plan.sources)).encode("utf-8", "replace"), needles)
    for name, source in plan.sources.items():
        for path in _small_files(Path(source)):
            shown = f"files/{name}/{path.relative_to(source)}" if path != Path(source) else f"files/{name}"
            try:
                yield from _in(shown, path.read_bytes(), needles)
            except OSError:  # whoever packs it tells
                continue


def _in(place: str, data: bytes, needles: Mapping[str, set[bytes]]) -> Iterator[tuple[str, str]]:
    for name, spelled in needles.items():
        hits = [at for one in spelled if (at := data.find(one)) >= 0]
        if hits:
            line = data.count(b"\n", 0, min(hits)) + 1
            yield name, f"{place} line {line}"


def _small_files(top: Path) -> Iterator[Path]:
    paths = [top] if top.is_file() else [Path(folder, name) for folder, _, names in os.walk(top) for name in names]
    for path in sorted(paths):
        if path.is_file() and path.stat().st_size <= LARGEST:
            yield path


def short_ones(secrets: Mapping[str, str]) -> list[str]:
    """Names of secrets too short to be masked."""
    return [name for name, value in secrets.items() if len(value) < LEAST_SECRET]

"""Small jobs and inventories for tests of spec, compiler and render."""

from __future__ import annotations

from pathlib import Path

import pytest

from ostrain.errors import SpecError
from ostrain.plan import LaunchPlan
from ostrain.spec import LoadedJob, load_job

TRAIN = """train:
  recipe: quickstart
  data: {annotations: /data/train.csv, videos: /data, text_embeddings: /data/text}
"""
INVENTORY = """name: duo
backend: ssh
device: Ascend
defaults: {devices: 8, python: /opt/py/bin/python}
nodes:
  - {name: a, host: 192.0.2.1}
  - {name: b, host: 192.0.2.2}
"""


def write_job(folder: Path, text: str = "", *, train: str = TRAIN, head: str = "") -> Path:
    """A job file ``job.yaml``; ``head`` replaces the first lines, ``text`` follows them."""
    path = folder / "job.yaml"
    path.write_text((head or "name: job\ncluster: local\ndevices_per_node: 2\n") + text + train, encoding="utf-8")
    return path


def write_inventory(folder: Path, text: str = INVENTORY, name: str = "duo") -> Path:
    path = folder / "clusters" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    """The rendered problems of a job that must not load."""
    with pytest.raises(SpecError) as caught:
        load_job(path, overrides)
    return caught.value.problems


def the_problem(path: Path, *overrides: str) -> str:
    """The only problem of a job; more than one fails the test."""
    found = problems(path, *overrides)
    assert len(found) == 1, "\n\n".join(found)
    return found[0]


def place(problem: str) -> tuple[int, int, str]:
    """(line, column, underlined text) of a rendered problem, as its header and its carets say; they have to agree."""
    head, line, carets = problem.split("\n")
    _, row, column, _ = head.split(":", 3)
    start = len(carets) - len(carets.lstrip())
    return int(row), int(column), line[start : start + carets.count("^")]


def compiled(path: Path, *overrides: str) -> tuple[LoadedJob, LaunchPlan]:
    from ostrain.compiler import compile_plan

    loaded = load_job(path, overrides)
    return loaded, compile_plan(loaded)

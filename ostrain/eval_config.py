"""What ``ostrain eval`` measures: a configuration file or the task of a job, with what is overridden."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping as AnyMapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.config.eval_vae import EvalVaeConfig
from ostrain.errors import OstrainError, SpecError
from ostrain.spec.document import DocumentError, Mapping, load_document, plain
from ostrain.spec.overrides import apply_overrides, parse_overrides
from ostrain.spec.problems import Mark, Problem, Source, render_all
from ostrain.spec.resources import find_job, shown_path
from ostrain.spec.translate import validate

_PATHS = (
    ("weights",), ("data", "videos"), ("data", "annotations"), ("autoencoder", "pretrained"),
    ("autoencoder", "pretrained_2d"), ("perceptual", "vgg"), ("perceptual", "lin"),
)  # fmt: skip
NEXT = "correct the places above; docs/vae.md explains every key"


def eval_values(named: str | None, options: AnyMapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The checked configuration's values as they were said. SpecError lists every problem with its place.

    named: a YAML file, or a job with ``eval_vae``. options: dotted keys and values; overrides: ``key.key=value`` texts,
    which win. Relative paths start in the working directory.
    """
    texts = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in options.items()]
    parsed, problems = parse_overrides([*texts, *overrides])
    tree, found = apply_overrides(_document(named), parsed)
    problems += found
    config, found, _ = validate(EvalVaeConfig, tree)
    problems += found
    if config is not None and not config.data.videos and not config.data.annotations:
        raise OstrainError(
            "nothing says which clips are measured", next_step="name a CSV, a folder or a clip", exit_code=2
        )
    if problems or config is None:
        raise SpecError(render_all(problems), what=_count(problems), next_step=NEXT)
    values: dict[str, Any] = plain(tree)
    for path in _PATHS:
        _make_absolute(values, path)
    return values


def _make_absolute(values: dict[str, Any], path: Sequence[str]) -> None:
    """The task starts paths at its run directory, a command at the working directory."""
    *above, last = path
    for key in above:
        values = values.get(key) or {}
    if values.get(last):
        values[last] = os.path.abspath(values[last])


def _count(problems: Sequence[Problem]) -> str:
    return f"{len(problems)} problem{'s' if len(problems) != 1 else ''} in what is to be measured"


def _document(named: str | None) -> Mapping:
    if named is None:
        return Mapping({}, Mark(Source("the command line", "")))
    file = find_job(Path(named))
    if file is None:
        raise OstrainError(f"there is no configuration {named}", next_step="name a YAML file", exit_code=2)
    try:
        tree = load_document(file, shown_path(file))
    except DocumentError as error:
        raise SpecError(render_all(error.problems), what=_count(error.problems), next_step=NEXT) from None
    below = tree.items.get("eval_vae")
    return below if isinstance(below, Mapping) else tree

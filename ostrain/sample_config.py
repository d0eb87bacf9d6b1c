"""What ``ostrain sample`` samples: a configuration, a recipe or the ``sample:`` of a job, with what is overridden."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.config.sample import SampleConfig, sample_problems
from models.recipe import recipe_names, recipe_task
from ostrain.errors import OstrainError, SpecError
from ostrain.spec.document import DocumentError, Mapping, Scalar, find, load_document, plain, value_mark
from ostrain.spec.merge import merge_train
from ostrain.spec.overrides import apply_overrides, parse_overrides
from ostrain.spec.problems import Mark, Problem, Source, did_you_mean, render_all
from ostrain.spec.recipes import load_recipe
from ostrain.spec.resources import find_job, shown_path
from ostrain.spec.translate import validate

NEXT = "correct the places above; docs/sampling.md explains every key"


def load_sample(named: str | None, overrides: Sequence[str]) -> tuple[SampleConfig, dict[str, Any]]:
    """The configuration and its values as they were said, recipe included.

    named: a YAML file (a sample configuration, or a job with ``sample``), a bundled recipe or job; None: nothing.
    overrides: ``key.key=value`` texts. SpecError lists every problem with its place.
    """
    parsed, problems = parse_overrides(overrides)
    tree = _document(named)
    overridden, found = apply_overrides(tree, parsed)
    problems += found
    recipe, found = load_recipe(find(overridden, ("recipe",)), "sample")
    problems += found
    if recipe is not None:
        tree, _ = apply_overrides(merge_train(recipe, tree), parsed)
    else:
        tree = overridden
    config, found, _ = validate(SampleConfig, tree)
    problems += found
    if config is not None:
        problems += [Problem(value_mark(tree, path), f"{path[0]}: {why}") for path, why in sample_problems(config)]
    if problems or config is None:
        raise SpecError(render_all(problems), what=_count(problems), next_step=NEXT)
    values: dict[str, Any] = plain(tree)
    return config, values


def override(key: str, value: Any) -> str:
    """``--set`` text for a value as it is."""
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def _sample_recipes() -> list[str]:
    return [name for name in recipe_names() if recipe_task(name) == "sample"]


def _count(problems: Sequence[Problem]) -> str:
    return f"{len(problems)} problem{'s' if len(problems) != 1 else ''} in what is to be sampled"


def _document(named: str | None) -> Mapping:
    nowhere = Mark(Source("the command line", ""))
    if named is None:
        return Mapping({}, nowhere)
    if named in recipe_names():
        return Mapping({"recipe": Scalar(named, nowhere, named)}, nowhere, {"recipe": nowhere})
    file = find_job(Path(named))
    if file is None:
        names = _sample_recipes()
        raise OstrainError(
            f"there is no configuration or recipe {named}{did_you_mean(named, names)}",
            why=f"bundled recipes of sampling: {', '.join(names)}",
            next_step="name a YAML file or a recipe",
            exit_code=2,
        )
    try:
        tree = load_document(file, shown_path(file))
    except DocumentError as error:
        raise SpecError(render_all(error.problems), what=_count(error.problems), next_step=NEXT) from None
    below = tree.items.get("sample")
    if isinstance(below, Mapping):
        return below
    if "train" in tree.items or "matrix" in tree.items:
        raise OstrainError(
            f"{named} is a job of another kind: it samples nothing", next_step=f"ostrain submit {named}", exit_code=2
        )
    return tree

"""Recipes: bundled defaults as YAML files that may build on one another (``base: opensora_v1_2/base``).

A recipe is a part of a task's configuration as a mapping; its key ``task`` says which, ``train`` where it is not
there. Sections merge key by key; everything else is replaced, buckets and masks as a whole. Imports no MindSpore.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from models.config import TrainConfig

FOLDER = Path(__file__).parent / "recipes"
# Maps with free keys are one decision, not many: half a parent's buckets beside a child's would be nobody's choice.
REPLACED_WHOLE = frozenset({("data", "bucket_config"), ("mask_ratios",), ("validation", "bucket_config")})
# Keys of a recipe about the recipe itself.
ABOUT = frozenset({"base", "task"})


class RecipeError(ValueError):
    """A recipe that does not exist or cannot be used; the text names it and the next step."""


def recipe_names() -> list[str]:
    """All bundled recipes, by the name a job uses."""
    return sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml"))


def recipe_chain(name: str) -> list[Path]:
    """Files of a recipe, the one it builds on first. RecipeError: unknown name (with close ones), cycle, bad file."""
    chain: list[Path] = []
    seen: list[str] = []
    current: Any = name
    while current:
        path = _find(current, seen[-1] if seen else "")
        if current in seen:
            raise RecipeError(f"recipes build on one another in a circle: {' -> '.join([*seen, current])}")
        seen.append(current)
        chain.insert(0, path)
        current = load_recipe(path).get("base")
    return chain


def load_recipe(path: Path) -> dict[str, Any]:
    """The mapping in a recipe file, ``base`` included. RecipeError names file and line."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise RecipeError(f"{path}: a recipe is a mapping")
    return value


def merge(base: Mapping[str, Any], over: Mapping[str, Any], above: tuple[str, ...] = ()) -> dict[str, Any]:
    """``over`` laid over ``base``: sections key by key, everything else replaced. Neither is changed."""
    merged = dict(base)
    for key, value in over.items():
        old, path = merged.get(key), (*above, key)
        sections = isinstance(old, Mapping) and isinstance(value, Mapping) and path not in REPLACED_WHOLE
        merged[key] = merge(old, value, path) if sections else value
    return merged


def recipe_task(name: str) -> str:
    """The task a recipe is for. RecipeError."""
    said = [load_recipe(path).get("task") for path in recipe_chain(name)]
    return next((str(task) for task in reversed(said) if task), "train")


def expand(values: Mapping[str, Any], task: str = "train") -> dict[str, Any]:
    """``values`` of a ``task`` laid over the recipe it names, as a plain mapping. RecipeError."""
    merged: dict[str, Any] = {}
    name = str(values.get("recipe") or "")
    if name and recipe_task(name) != task:
        raise RecipeError(f"recipe {name} is one for {recipe_task(name)}, not for {task}")
    for path in recipe_chain(name) if name else []:
        merged = merge(merged, {key: value for key, value in load_recipe(path).items() if key not in ABOUT})
    return merge(merged, values)


def resolve(values: Mapping[str, Any]) -> TrainConfig:
    """The training that ``values`` and the recipe it names make. RecipeError, pydantic.ValidationError."""
    return TrainConfig.model_validate(expand(values))


def _find(name: Any, user: str) -> Path:
    known = recipe_names()
    if isinstance(name, str) and name in known:
        return FOLDER / f"{name}.yaml"
    close = difflib.get_close_matches(str(name), known, 3, 0.4)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
    where = f"recipe {user} builds on" if user else "there is no recipe named"
    raise RecipeError(f"{where} {name!r}{', which does not exist' if user else ''}; {hint}")

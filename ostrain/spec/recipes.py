"""Recipes with inheritance: bundled defaults of ``train``, the base first."""

from __future__ import annotations

from models.recipe import ABOUT, RecipeError, recipe_chain, recipe_names, recipe_task
from ostrain.spec.document import DocumentError, Mapping, Node, Scalar, load_document
from ostrain.spec.merge import merge_train
from ostrain.spec.problems import Problem, did_you_mean
from ostrain.spec.resources import shown_path


def load_recipe(named: Node | None, task: str = "train") -> tuple[Mapping | None, list[Problem]]:
    """The recipe that ``recipe`` of a task names, with everything it inherits, every value with its place."""
    if not isinstance(named, Scalar) or not isinstance(named.value, str) or not named.value:
        return None, []
    names = recipe_names()
    if named.value not in names:
        message = f"there is no recipe {named.value!r}{did_you_mean(named.value, names)}; known: {', '.join(names)}"
        return None, [Problem(named.mark, message)]
    try:
        chain = recipe_chain(named.value)
    except RecipeError as error:
        return None, [Problem(named.mark, str(error))]
    if recipe_task(named.value) != task:
        fitting = [name for name in names if recipe_task(name) == task]
        message = f"recipe {named.value} is one for {recipe_task(named.value)}, not for {task}"
        return None, [Problem(named.mark, message + (f"; for {task}: {', '.join(fitting)}" if fitting else ""))]
    merged: Mapping | None = None
    for path in chain:
        try:
            document = load_document(path, shown_path(path))
        except DocumentError as error:
            return None, error.problems
        for key in ABOUT:
            document.items.pop(key, None)
        merged = merge_train(merged, document) if merged is not None else document
    return merged, []

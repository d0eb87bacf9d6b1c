"""Recipes and jobs laid over each other. Every value keeps the place it came from."""

from __future__ import annotations

from models.recipe import REPLACED_WHOLE
from ostrain.spec.document import Mapping, Node, find, plain
from ostrain.spec.problems import Mark, Problem


def merge_train(base: Mapping, over: Mapping, above: tuple[str, ...] = ()) -> Mapping:
    """``over`` laid on ``base``: sections are merged key by key, all else (lists, bucket_config …) is replaced."""
    items: dict[str, Node] = dict(base.items)
    marks = dict(base.key_marks)
    for key, value in over.items.items():
        path = (*above, key)
        below = items.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping) and path not in REPLACED_WHOLE:
            value = merge_train(below, value, path)
        items[key] = value
        marks[key] = over.key_marks[key]
    return Mapping(items, over.mark, marks)


def fold_layout(job: Mapping, task: str, own_marks: set[Mark]) -> tuple[Mapping, list[Problem]]:
    """The job's ``layout`` put into that of its task. What job and task both say has to be the same.

    own_marks: places of the keys that the job itself (not its recipe) puts under the task's ``layout``.
    """
    layout, config = job.items.get("layout"), job.items.get(task)
    if not isinstance(layout, Mapping) or not isinstance(config, Mapping):
        return job, []
    below = config.items.get("layout")
    problems = []
    if isinstance(below, Mapping):
        for key in layout.items.keys() & below.items.keys():
            one, other = plain(layout.items[key]), plain(below.items[key])
            if below.key_marks[key] in own_marks and one != other:
                message = f"layout.{key} is {one} and {task}.layout.{key} is {other}; say it once"
                problems.append(Problem(below.key_marks[key], message))
    marks = {**config.key_marks, "layout": job.key_marks["layout"]}
    merged = merge_train(below, layout) if isinstance(below, Mapping) else layout
    config = Mapping({**config.items, "layout": merged}, config.mark, marks)
    return Mapping({**job.items, task: config}, job.mark, job.key_marks), problems


def key_places(node: Node | None, path: tuple[str, ...]) -> set[Mark]:
    """Places of the keys of the mapping at ``path``; none where there is no mapping."""
    found = find(node, path) if node is not None else None
    return set(found.key_marks.values()) if isinstance(found, Mapping) else set()

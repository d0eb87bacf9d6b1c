"""``--set a.b=c``: the value is YAML, the path names keys (and numbers of list items) from the top of the job."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from ostrain.spec.document import DocumentError, Mapping, Node, Scalar, Sequence, parse
from ostrain.spec.problems import Mark, Problem, Source


@dataclass(frozen=True)
class Override:
    """One ``--set``: where each key of the path stands in it, and the value."""

    path: tuple[str, ...]
    marks: tuple[Mark, ...]
    value: Node


def parse_overrides(texts: Seq[str]) -> tuple[list[Override], list[Problem]]:
    overrides, problems = [], []
    for text in texts:
        try:
            overrides.append(_parse(text))
        except DocumentError as error:
            problems.extend(error.problems)
    return overrides, problems


def _parse(text: str) -> Override:
    source = Source(f"--set {text}".replace("\n", " "), text, is_override=True)
    path_text, equals, value_text = text.partition("=")
    if not equals:
        message = "needs the form key.key=value, for example train.steps=100"
        raise DocumentError([Problem(Mark(source, 0, 0, max(1, len(text))), message)])
    keys = tuple(path_text.split("."))
    marks, column = [], 0
    for key in keys:
        mark = Mark(source, 0, column, max(1, len(key)))
        if not key or key != key.strip():
            raise DocumentError([Problem(mark, "an empty key in the path" if not key else "a space in the path")])
        marks.append(mark)
        column += len(key) + 1
    if not value_text.strip():
        value: Node = Scalar(None, Mark(source, 0, max(0, len(text) - 1)))
    else:
        value = parse(source, column=len(path_text) + 1)
    return Override(keys, tuple(marks), value)


def apply_overrides(tree: Mapping, overrides: Seq[Override]) -> tuple[Mapping, list[Problem]]:
    """A copy of the tree with every override in it; the later one wins."""
    problems = []
    for override in overrides:
        try:
            changed = _put(tree, override, 0)
            assert isinstance(changed, Mapping)
            tree = changed
        except DocumentError as error:
            problems.extend(error.problems)
    return tree, problems


def _put(node: Node, override: Override, depth: int) -> Node:
    """``node`` with the value put at the rest of the path; mappings on the way are made where there are none."""
    if depth == len(override.path):
        return override.value
    key, mark = override.path[depth], override.marks[depth]
    if isinstance(node, Sequence):
        if not key.isdigit() or int(key) >= len(node.items):
            message = f"{_joined(override, depth)} is a list of {len(node.items)}; items count from 0"
            raise DocumentError([Problem(mark, message)])
        items = list(node.items)
        items[int(key)] = _put(items[int(key)], override, depth + 1)
        return Sequence(items, node.mark)
    if isinstance(node, Scalar):
        if node.value is not None:
            message = f"{_joined(override, depth)} is a single value ({node.raw}); it has no {key!r}"
            raise DocumentError([Problem(mark, message)])
        node = Mapping({}, mark)
    below = node.items.get(key, Mapping({}, mark))
    return Mapping({**node.items, key: _put(below, override, depth + 1)}, node.mark, {**node.key_marks, key: mark})


def _joined(override: Override, depth: int) -> str:
    return ".".join(override.path[:depth])

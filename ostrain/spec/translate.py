"""pydantic's errors in plain words, each at its place in the file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from ostrain.spec.document import Mapping, Node, Scalar, Sequence, child, find, key_mark, plain, value_mark
from ostrain.spec.problems import Mark, Problem, did_you_mean

ModelT = TypeVar("ModelT", bound=BaseModel)
Path = tuple[str, ...]
_NEEDED = {
    "int_type": "a whole number", "int_parsing": "a whole number", "int_from_float": "a whole number",
    "int_parsing_size": "a smaller whole number", "float_type": "a number", "float_parsing": "a number",
    "string_type": "text", "bool_type": "true or false", "bool_parsing": "true or false",
    "list_type": "a list", "tuple_type": "a list", "dict_type": "a mapping", "model_type": "a mapping",
    "model_attributes_type": "a mapping", "none_required": "nothing (null)",
}  # fmt: skip
_BOUNDS = {
    "greater_than_equal": ("ge", "at least"), "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"), "less_than": ("lt", "less than"),
}  # fmt: skip


@dataclass(frozen=True)
class _Error:
    """One pydantic error: ``path`` in the tree, ``anchor`` where a union was entered (None: nowhere)."""

    path: Path
    anchor: Path | None
    kind: str
    context: dict[str, Any]
    message: str
    on_key: bool

    @property
    def only_type(self) -> bool:
        """Whether it says no more than that the value at the union itself is of another type."""
        return self.path == self.anchor and (self.kind in _NEEDED or self.kind == "literal_error")


def validate(model: type[ModelT], tree: Mapping) -> tuple[ModelT | None, list[Problem], list[Path]]:
    """The model of a tree, or None with every problem and the paths they are at.

    Strict: nothing is coerced (``"5"`` is text, ``true`` no number); JSON mode lets lists be tuples.
    """
    try:
        return model.model_validate_json(json.dumps(plain(tree)), strict=True), [], []
    except ValidationError as failure:
        errors = _without_union_noise(
            [_located(error, tree) for error in failure.errors(include_url=False, include_input=False)]
        )
    problems = [Problem(_mark(error, tree), _words(error, tree, model)) for error in errors]
    return None, problems, [error.path for error in errors]


def validate_what_stands(model: type[ModelT], tree: Mapping) -> tuple[ModelT | None, list[Problem], list[Path]]:
    """As ``validate``, but where the rest makes a model without the wrong values, that model as well.

    So that what lies between two values can be checked although a third one is wrong. The returned paths are those
    that were left out.
    """
    result, problems, paths = validate(model, tree)
    if result is not None:
        return result, problems, paths
    kept: Node = tree
    for path in sorted(set(paths), key=len, reverse=True):
        kept = _pruned(kept, path)
    assert isinstance(kept, Mapping)
    return validate(model, kept)[0], problems, paths


def _pruned(node: Node, path: Path) -> Node:
    """A copy without what is at ``path``; a list loses all its items with one of them."""
    if not path or not isinstance(node, Mapping) or path[0] not in node.items:
        return node
    items = dict(node.items)
    below = items[path[0]]
    if len(path) == 1 or not isinstance(below, Mapping):
        del items[path[0]]
    else:
        items[path[0]] = _pruned(below, path[1:])
    return Mapping(items, node.mark, node.key_marks)


def _located(error: Any, tree: Mapping) -> _Error:
    """Locations hold names of union members, which are in no file: drop them, and remember where the union was."""
    node: Node | None = tree
    path: Path = ()
    anchor: Path | None = None
    on_key = False
    steps = [str(step) for step in error["loc"]]
    for index, step in enumerate(steps):
        below = child(node, step) if node is not None else None
        last = index == len(steps) - 1
        if below is not None:
            node, path = below, (*path, step)
        elif step == "[key]":
            on_key = True
        elif last and error["type"] == "missing":
            path = (*path, step)
        elif anchor is None:
            anchor = path
    message = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return _Error(path, anchor, error["type"], error.get("ctx", {}), message, on_key)


def _without_union_noise(errors: list[_Error]) -> list[_Error]:
    """One mistake inside ``a | b`` gives an error for each of a and b: keep what is to the point."""
    kept = [error for error in errors if error.anchor is None]
    for anchor in dict.fromkeys(error.anchor for error in errors if error.anchor is not None):
        group = [error for error in errors if error.anchor == anchor]
        precise = [error for error in group if not error.only_type]
        if precise:
            kept.extend(precise)
            continue
        needed = " or ".join(dict.fromkeys(_needed(error) for error in group))
        kept.append(_Error(anchor, None, "union", {"needed": needed}, "", False))
    return kept


def _needed(error: _Error) -> str:
    if error.kind == "literal_error":
        return str(error.context["expected"]).replace("'", "")
    return _NEEDED[error.kind]


def _mark(error: _Error, tree: Mapping) -> Mark:
    if error.kind == "missing":
        above = find(tree, error.path[:-1])
        return above.mark if isinstance(above, Sequence) else key_mark(tree, error.path[:-1])
    if error.on_key or error.kind == "extra_forbidden":
        return key_mark(tree, error.path)
    return value_mark(tree, error.path)


def _words(error: _Error, tree: Mapping, model: type[BaseModel]) -> str:
    node = find(tree, error.path)
    key = error.path[-1] if error.path else ""
    label = _label(error.path, tree)
    if error.kind == "missing":
        return _missing(error, tree, model)
    if error.kind == "extra_forbidden":
        return _unknown(error.path, model)
    if error.on_key:
        return f"{key!r} cannot stand here: {_key_words(error)}"
    if error.kind == "literal_error":
        known = [str(word).strip("'") for word in _literals(error.context["expected"])]
        return f"{_shown(node)} is not one of {', '.join(known)}{did_you_mean(_raw(node), known)}{_quote_hint(node)}"
    if error.kind == "union" or error.kind in _NEEDED:
        needed = error.context["needed"] if error.kind == "union" else _NEEDED[error.kind]
        return f"{label}needs {needed}, not {_shown(node)}{_quote_hint(node) if 'text' in needed else ''}"
    if error.kind in _BOUNDS:
        name, word = _BOUNDS[error.kind]
        return f"{label}is {_shown(node)}; it has to be {word} {error.context[name]}"
    if error.kind == "too_short":
        return f"{label}is too short; {error.context['min_length']} or more are needed"
    if error.kind == "too_long":
        return f"{label}holds too much; {error.context['max_length']} values at most"
    if error.kind == "environment_value":
        return f"{label}needs text, not {_shown(node)}; {_env_hint(node)}"
    if error.kind == "value_error" and isinstance(node, Scalar) and _raw(node) not in error.message:
        return f"{label}{_shown(node)}: {error.message}" if node.value is not None else f"{label}{error.message}"
    return f"{label}{error.message}"


def _label(path: Path, tree: Mapping) -> str:
    """``steps `` or, in a list, ``item 2 ``: what a message starts with."""
    if not path:
        return ""
    return f"item {int(path[-1]) + 1} " if isinstance(find(tree, path[:-1]), Sequence) else f"{path[-1]} "


def _missing(error: _Error, tree: Mapping, model: type[BaseModel]) -> str:
    key = error.path[-1]
    above = find(tree, error.path[:-1])
    if isinstance(above, Sequence):
        return f"{_label(error.path[:-1], tree)}holds {len(above.items)} values; at least {int(key) + 1} are needed"
    owner = model_at(model, error.path[:-1])
    info = owner.model_fields.get(key) if owner else None
    told = f" ({info.description})" if info is not None and info.description else ""
    place = f" in {'.'.join(error.path[:-1])}" if len(error.path) > 1 else ""
    return f"{key!r} is missing{place}{told}"


def _unknown(path: Path, model: type[BaseModel]) -> str:
    owner = model_at(model, path[:-1])
    known = list(owner.model_fields) if owner else []
    elsewhere = [".".join((*place, path[-1])) for place, keys in _sections(model) if path[-1] in keys]
    if elsewhere:
        return f"unknown key {path[-1]!r}; did you mean {elsewhere[0]!r}?"
    near = did_you_mean(path[-1], known)
    if near or not known:
        return f"unknown key {path[-1]!r}{near}"
    return f"unknown key {path[-1]!r}; known here: {', '.join(known)}"


def _key_words(error: _Error) -> str:
    if error.kind in ("int_parsing", "int_type"):
        return "a whole number is needed as key"
    if error.kind in _BOUNDS:
        name, word = _BOUNDS[error.kind]
        return f"it has to be {word} {error.context[name]}"
    return error.message


def _literals(expected: str) -> list[str]:
    return expected.replace(" or ", ", ").split(", ")


def _raw(node: Node | None) -> str:
    return node.raw if isinstance(node, Scalar) else ""


def _shown(node: Node | None) -> str:
    if isinstance(node, Mapping):
        return "a mapping"
    if isinstance(node, Sequence):
        return "a list"
    if node is None or node.value is None:
        return "nothing"
    if isinstance(node.value, str):
        return repr(node.value if len(node.value) <= 60 else node.value[:57] + "…")
    return node.raw[:60] or str(node.value)


def _quote_hint(node: Node | None) -> str:
    if not isinstance(node, Scalar) or not isinstance(node.value, bool | int | float):
        return ""
    kind = "a boolean" if isinstance(node.value, bool) else "a number"
    return f'; {node.raw} without quotes is {kind} in YAML: write "{node.raw}"'


def _env_hint(node: Node | None) -> str:
    from ostrain.environment import ENV_VALUE_HELP

    hint = _quote_hint(node).removeprefix("; ")
    return hint or ENV_VALUE_HELP


def model_at(model: type[BaseModel], path: Iterable[str]) -> type[BaseModel] | None:
    """The model class whose keys stand at ``path``, None where no fixed keys do."""
    current: Any = model
    for step in path:
        if isinstance(current, type) and issubclass(current, BaseModel):
            info = current.model_fields.get(step)
            current = _inner(info.annotation) if info else None
        elif get_origin(current) in (list, dict):
            current = _inner(get_args(current)[-1])
        else:
            return None
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None


def _inner(annotation: Any) -> Any:
    """What is left of an annotation without Annotated, None and value types."""
    if hasattr(annotation, "__metadata__"):
        return _inner(annotation.__origin__)
    if get_origin(annotation) is Union or type(annotation).__name__ == "UnionType":
        inner = [_inner(argument) for argument in get_args(annotation)]
        models = [item for item in inner if isinstance(item, type) and issubclass(item, BaseModel)]
        return models[0] if len(models) == 1 else next((item for item in inner if get_origin(item)), None)
    return annotation


def _sections(model: type[BaseModel], above: Path = ()) -> list[tuple[Path, set[str]]]:
    """Every model below ``model`` with its path and keys, for keys that were written one level off."""
    found = [(above, set(model.model_fields))]
    for name, info in model.model_fields.items():
        inner = _inner(info.annotation)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found.extend(_sections(inner, (*above, name)))
    return found

"""docs/keys.md: every key of every task as tables, made from the models that check jobs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from models.config.tasks import TASKS
from ostrain.spec.schema import job_schema

_HEAD = """\
# Keys of tasks

What a job may say below each task; `ostrain schema --markdown` writes this page. [jobs.md](jobs.md) explains the rest
of a job. A section that occurs in several tasks stands here once.
"""
_TYPES = {
    "integer": "whole number", "number": "number", "string": "text", "array": "list", "object": "mapping",
    "boolean": "true \\| false",
}  # fmt: skip


def reference() -> str:
    """The page."""
    schema = job_schema()
    sections: dict[str, str] = {}
    parts = [_HEAD]
    for kind in TASKS.values():
        name = kind.config.__name__
        sections[name] = kind.name
        parts.append(f"## `{kind.name}`: {kind.what}\n\n" + "\n".join(_table(schema, name)) + "\n")
        for section, path in _below(schema, name, kind.name):
            if section not in sections:
                sections[section] = path
                parts.append(f"### `{path}`\n\n" + "\n".join(_table(schema, section)) + "\n")
    return "\n".join(parts)


def _below(schema: dict[str, Any], section: str, path: str) -> Iterator[tuple[str, str]]:
    """(section, dotted path) of the sections in a section, each before those in it."""
    for key, described in schema["$defs"][section]["properties"].items():
        for name in _references(described):
            yield name, f"{path}.{key}"
            yield from _below(schema, name, f"{path}.{key}")


def _references(described: dict[str, Any]) -> list[str]:
    options = [described, *described.get("anyOf", [])]
    return [option["$ref"].rsplit("/", 1)[1] for option in options if "$ref" in option]


def _table(schema: dict[str, Any], section: str) -> Iterator[str]:
    yield "| key | value | default | meaning |"
    yield "|---|---|---|---|"
    for key, described in schema["$defs"][section]["properties"].items():
        meaning = described.get("description", "").replace("|", "\\|")
        yield f"| `{key}` | {_value(described)} | {_default(described)} | {meaning} |"


def _value(described: dict[str, Any]) -> str:
    options = described.get("anyOf", [described])
    words = dict.fromkeys(word for option in options for word in _words(option))
    return " \\| ".join(words)


def _words(option: dict[str, Any]) -> Iterator[str]:
    if "$ref" in option:
        yield "mapping"
    elif "enum" in option or "const" in option:
        yield from (str(word) for word in option.get("enum", [option.get("const")]))
    else:
        kinds = option.get("type", [])
        for kind in [kinds] if isinstance(kinds, str) else kinds:
            if kind != "null":
                yield _TYPES[kind]


def _default(described: dict[str, Any]) -> str:
    default = described.get("default")
    if isinstance(default, dict) or "$ref" in described:
        return ""
    return json.dumps(default)

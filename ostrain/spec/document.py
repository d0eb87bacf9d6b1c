"""YAML with a place for every key and value, read with PyYAML's SafeLoader and nothing beyond plain data.

Differences from YAML 1.1, where it surprises people: ``1e-4`` is a number; ``9:16`` and ``2026-01-01`` are text;
``010`` (octal?) is refused; a key is the text that is written, so ``on:`` is the key "on"; duplicate keys are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ostrain.spec.problems import Mark, Problem, Source

MAX_BYTES = 4 << 20
MAX_VALUES = 200_000
MAX_DEPTH = 60
_FLOAT = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+\Z")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+\Z")
_TAG = "tag:yaml.org,2002:"
Path_ = tuple[str, ...]


class DocumentError(Exception):
    """A text that is no document; ``problems`` say where and why."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self.problems = problems


@dataclass
class Scalar:
    """A value; ``raw`` is the text as written, ``plain`` whether it was written without quotes."""

    value: str | int | float | bool | None
    mark: Mark
    raw: str = ""
    plain: bool = True


@dataclass
class Sequence:
    items: list[Node]
    mark: Mark


@dataclass
class Mapping:
    """Keys are the text as written. ``key_marks`` hold the keys' places, the nodes their values'."""

    items: dict[str, Node]
    mark: Mark
    key_marks: dict[str, Mark] = field(default_factory=dict)

    def get(self, *path: str) -> Node | None:
        """The node at ``path`` below this one."""
        return find(self, path)


Node = Scalar | Sequence | Mapping


def plain(node: Node) -> Any:
    """The data alone."""
    if isinstance(node, Mapping):
        return {key: plain(value) for key, value in node.items.items()}
    if isinstance(node, Sequence):
        return [plain(item) for item in node.items]
    return node.value


def child(node: Node, key: str) -> Node | None:
    if isinstance(node, Mapping):
        return node.items.get(key)
    if isinstance(node, Sequence) and key.isdigit() and int(key) < len(node.items):
        return node.items[int(key)]
    return None


def find(node: Node, path: tuple[str, ...]) -> Node | None:
    """The node at ``path``, None where there is none."""
    found: Node | None = node
    for key in path:
        found = child(found, key) if found is not None else None
    return found


def key_mark(node: Node, path: tuple[str, ...]) -> Mark:
    """The place of the key that ``path`` ends in; of the nearest thing above it where it is not written."""
    for length in range(len(path), 0, -1):
        parent = find(node, path[: length - 1])
        if isinstance(parent, Mapping) and path[length - 1] in parent.key_marks:
            return parent.key_marks[path[length - 1]]
        found = find(node, path[:length])
        if found is not None:
            return found.mark
    return node.mark


def value_mark(node: Node, path: tuple[str, ...]) -> Mark:
    """The place of the value at ``path``; for what spans lines, or is not written, of its key."""
    found = find(node, path)
    if isinstance(found, Scalar) and not (found.plain and found.raw == ""):
        return found.mark
    if isinstance(found, Mapping | Sequence) and found.mark.length > 1:
        return found.mark
    return key_mark(node, path)


def load_document(path: Path, name: str = "") -> Mapping:
    """Read a YAML file whose top is a mapping. ``name`` is what messages call it. Raises DocumentError, OSError."""
    name = name or str(path)
    with path.open("rb") as stream:
        data = stream.read(MAX_BYTES + 1)
    source = Source(name, data.decode("utf-8", errors="replace").replace("\r\n", "\n"))
    if len(data) > MAX_BYTES:
        raise DocumentError([Problem(Mark(Source(name, "")), f"is larger than {MAX_BYTES >> 20} MB")])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = before.count(b"\n")
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", errors="replace"))
        message = f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise DocumentError([Problem(Mark(source, line, column), message)]) from None
    return parse_mapping(Source(name, text.replace("\r\n", "\n")))


def parse_mapping(source: Source) -> Mapping:
    """The mapping a text holds. Raises DocumentError."""
    node = parse(source)
    if isinstance(node, Scalar) and node.value is None and node.raw == "":
        raise DocumentError([Problem(Mark(source), "is empty; a mapping (`key: value` lines) is needed")])
    if not isinstance(node, Mapping):
        what = "a list" if isinstance(node, Sequence) else "a single value"
        raise DocumentError([Problem(node.mark, f"is {what}; a mapping (`key: value` lines) is needed")])
    return node


def parse(source: Source, line: int = 0, column: int = 0) -> Node:
    """Any YAML value; ``line`` and ``column`` say where in ``source.text`` it starts (an override's value)."""
    text = source.text[column:] if column else source.text
    try:
        composed = _compose(text)
        builder = _Builder(source, line, column)
        node = builder.build(composed) if composed is not None else Scalar(None, Mark(source, line, column))
    except yaml.MarkedYAMLError as error:
        raise DocumentError([_syntax_problem(source, error, column)]) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = Mark(source, before.count("\n"), len(before) - before.rfind("\n") - 1 + column)
        code = ord(error.character) if isinstance(error.character, str) else error.character
        message = f'character U+{code:04X} cannot stand in YAML; write it as "\\u{code:04x}" in double quotes'
        raise DocumentError([Problem(place, message)]) from None
    except RecursionError:
        raise DocumentError([Problem(Mark(source), f"is nested deeper than {MAX_DEPTH} levels")]) from None
    if builder_problems := (builder.problems if composed is not None else []):
        raise DocumentError(builder_problems)
    return node


def _compose(text: str) -> yaml.Node | None:
    loader = yaml.SafeLoader(text)
    try:
        node: yaml.Node | None = loader.get_single_node()
        return node
    finally:
        loader.dispose()


def _syntax_problem(source: Source, error: yaml.MarkedYAMLError, offset: int) -> Problem:
    mark = error.problem_mark or error.context_mark
    place = Mark(source)
    if mark is not None:
        place = Mark(source, mark.line, mark.column + (offset if mark.line == 0 else 0))
    problem = (error.problem or "not YAML").replace("u'", "'")
    if (
        "\\t" in problem
        or "'\t'" in problem
        or source.line(place.line)[: place.column + 1].strip(" -").startswith("\t")
    ):
        return Problem(place, "a tab cannot indent YAML; use spaces")
    hint = ""
    if "mapping values are not allowed" in problem:
        hint = " (a ': ' inside a value needs quotes around it)"
    elif "expected a single document" in str(error.context or ""):
        hint = " (a file holds one document)"
    elif error.context:
        start = f", line {error.context_mark.line + 1}" if error.context_mark else ""
        hint = f" ({error.context}{start})"
    return Problem(place, f"not YAML: {problem}{hint}")


class _Builder:
    """PyYAML's node graph to located plain data: tags limited, keys unique, aliases bounded."""

    def __init__(self, source: Source, line: int, column: int) -> None:
        self.source = source
        self.line = line
        self.column = column
        self.count = 0
        self.open: set[int] = set()
        self.problems: list[Problem] = []

    def mark(self, node: yaml.Node) -> Mark:
        start, end = node.start_mark, node.end_mark
        length = end.column - start.column if end.line == start.line else 1
        if end.line != start.line and isinstance(node, yaml.ScalarNode):
            length = len(self.source.line(start.line)) - start.column
        shift = self.column if start.line == 0 else 0
        return Mark(self.source, start.line + self.line, start.column + shift, max(1, length))

    def build(self, node: yaml.Node) -> Node:
        self.count += 1
        place = self.mark(node)
        if self.count > MAX_VALUES:
            raise DocumentError([Problem(place, f"aliases (or the file) make more than {MAX_VALUES} values")])
        if len(self.open) > MAX_DEPTH:
            raise DocumentError([Problem(place, f"is nested deeper than {MAX_DEPTH} levels")])
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, place)
        if id(node) in self.open:
            raise DocumentError([Problem(place, "an alias to something that holds it; that never ends")])
        if node.tag not in (_TAG + "seq", _TAG + "map"):
            self.problems.append(Problem(place, f"the tag {_tag_text(node.tag)} is not used here; remove it"))
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self.mapping(node, place)
            return Sequence([self.build(item) for item in node.value], place)
        finally:
            self.open.discard(id(node))

    def mapping(self, node: yaml.MappingNode, place: Mark) -> Mapping:
        result = Mapping({}, place)
        merged: list[Mapping] = []
        for key, value in node.value:
            where = self.mark(key)
            if not isinstance(key, yaml.ScalarNode):
                self.problems.append(Problem(where, "a key is a word, not a list or mapping"))
                continue
            if key.tag == _TAG + "merge":
                merged.extend(self.merged(value))
                continue
            name = key.value
            if name in result.items:
                first = result.key_marks[name].line + 1
                self.problems.append(Problem(where, f"{name!r} stands twice in this mapping (first in line {first})"))
                continue
            result.items[name] = self.build(value)
            result.key_marks[name] = where
        for other in merged:
            for name, item in other.items.items():
                if name not in result.items:
                    result.items[name] = item
                    result.key_marks[name] = other.key_marks[name]
        return result

    def merged(self, value: yaml.Node) -> Iterator[Mapping]:
        """What ``<<: *anchor`` or ``<<: [*a, *b]`` brings in."""
        built = self.build(value)
        for part in built.items if isinstance(built, Sequence) else [built]:
            if isinstance(part, Mapping):
                yield part
            else:
                self.problems.append(Problem(part.mark, "<< takes a mapping or a list of mappings"))

    def scalar(self, node: yaml.ScalarNode, place: Mark) -> Scalar:
        text, is_plain = node.value, node.style is None
        if node.tag in (_TAG + "str", _TAG + "timestamp", _TAG + "value") or (node.tag == _TAG + "merge" and is_plain):
            if is_plain and _FLOAT.match(text):
                return self.number(node, place)
            return Scalar(text, place, text, is_plain)
        if node.tag == _TAG + "null":
            return Scalar(None, place, text, is_plain)
        if node.tag == _TAG + "bool" and text.lower() in yaml.SafeLoader.bool_values:
            return Scalar(yaml.SafeLoader.bool_values[text.lower()], place, text, is_plain)
        if node.tag in (_TAG + "int", _TAG + "float"):
            return self.number(node, place)
        self.problems.append(Problem(place, f"the tag {_tag_text(node.tag)} is not used here; remove it"))
        return Scalar(None, place, text, is_plain)

    def number(self, node: yaml.ScalarNode, place: Mark) -> Scalar:
        text, is_plain = node.value, node.style is None
        if ":" in text:
            return Scalar(text, place, text, is_plain)
        if _LEADING_ZERO.match(text) and node.tag == _TAG + "int":
            message = (
                f'is {text} a number or text? YAML reads it as octal; write {text.lstrip("+-0") or "0"} or "{text}"'
            )
            self.problems.append(Problem(place, message))
            return Scalar(None, place, text, is_plain)
        value = _number(text.replace("_", "").lower(), node.tag == _TAG + "int")
        if value is None:
            self.problems.append(Problem(place, f"{text!r} is no finite number"))
        return Scalar(value, place, text, is_plain)


def _number(digits: str, whole: bool) -> int | float | None:
    """The number, None for infinities, not-a-number and what only looks like one."""
    try:
        value = int(digits, 0) if whole else float(digits)
        return value if math.isfinite(value) else None
    except (ValueError, OverflowError):  # a whole number of hundreds of digits is not finite as far as we go
        return None


def _tag_text(tag: str) -> str:
    return "!!" + tag[len(_TAG) :] if tag.startswith(_TAG) else tag

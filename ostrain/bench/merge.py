"""Base job, the benchmark's own keys and an entry laid over each other. Every value keeps the place it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ostrain.spec.document import Mapping, Node, Scalar, Sequence, find
from ostrain.spec.merge import merge_train
from ostrain.spec.overrides import Override, apply_overrides
from ostrain.spec.problems import Mark
from ostrain.spec.resources import find_inventory

# Keys of an entry that are no keys of a job.
ENTRY_KEYS = ("label", "published")
# Keys of a benchmark that a reader may try to give to one entry.
BENCH_KEYS = ("steps", "warmup", "repeat", "global_batch", "timeout")


def lay_over(base: Mapping, over: Mapping) -> Mapping:
    """``over`` laid on a job: sections key by key, but a layout is one decision and replaces the job's whole one."""
    items: dict[str, Node] = dict(base.items)
    marks = dict(base.key_marks)
    if _says_layout(over):
        items.pop("layout", None)
        train = items.get("train")
        if isinstance(train, Mapping) and "layout" in train.items:
            items["train"] = without(train, "layout")
    for key, value in over.items.items():
        below = items.get(key)
        items[key] = merge_train(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
        marks[key] = over.key_marks[key]
    return Mapping(items, over.mark, marks)


def _says_layout(node: Mapping) -> bool:
    return find(node, ("layout",)) is not None or find(node, ("train", "layout")) is not None


def without(node: Mapping, *keys: str) -> Mapping:
    """A copy of a mapping without some of its keys."""
    return Mapping({key: value for key, value in node.items.items() if key not in keys}, node.mark, node.key_marks)


def with_values(tree: Mapping, values: dict[str, Any], mark: Mark) -> Mapping:
    """A copy of a tree with single values put at dotted paths; all of them stand at ``mark``."""
    overrides = []
    for dotted, value in values.items():
        path = tuple(dotted.split("."))
        overrides.append(Override(path, (mark,) * len(path), Scalar(value, mark, str(value))))
    changed, problems = apply_overrides(tree, overrides)
    # A problem here is a scalar where a section has to be; checking the job says so, at the place it stands.
    return tree if problems else changed


def located(layer: Mapping, bench: Path) -> Mapping:
    """A layer of a benchmark file whose relative ``files:`` and inventory start beside that file.

    The job is checked as if it stood where its base does, so these become absolute here.
    """
    items = dict(layer.items)
    files = items.get("files")
    if isinstance(files, Mapping):
        beside = {name: _beside(value, bench.resolve().parent) for name, value in files.items.items()}
        items["files"] = Mapping(beside, files.mark, files.key_marks)
    cluster = items.get("cluster")
    if isinstance(cluster, Scalar) and isinstance(cluster.value, str) and cluster.value not in ("", "local"):
        found = find_inventory(cluster.value, bench)
        if found is not None:
            items["cluster"] = Scalar(str(found.resolve()), cluster.mark, cluster.raw, cluster.plain)
    return Mapping(items, layer.mark, layer.key_marks)


def _beside(node: Node, folder: Path) -> Node:
    if not isinstance(node, Scalar) or not isinstance(node.value, str):
        return node
    return Scalar(str(folder / Path(node.value).expanduser()), node.mark, node.raw, node.plain)


def marks_of(node: Node) -> set[Mark]:
    """Every place inside a node."""
    found = {node.mark}
    if isinstance(node, Mapping):
        found.update(node.key_marks.values())
    below = node.items.values() if isinstance(node, Mapping) else node.items if isinstance(node, Sequence) else []
    return found.union(*(marks_of(item) for item in below))

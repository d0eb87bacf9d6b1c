"""What a conversion will write, and what it leaves out, before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from models.convert.expected import OPTIONAL, expected_shapes
from models.convert.files import Source
from models.convert.names import (
    ATTENTION_1X1,
    KINDS,
    TRAINING_STATE,
    from_stable_diffusion,
    kind_of,
    levels_of,
    to_mindspore,
    to_stable_diffusion,
    to_torch,
)
from models.convert.stored import Stored
from models.exits import BAD_CHECKPOINT, PayloadError

_TRANSFORMERS = ("stdit", "stdit2", "stdit3", "pixart")


@dataclass(frozen=True)
class Item:
    """A tensor to be written. ``what``: matched (as it was), renamed, reshaped."""

    name: str
    source: str
    stored: Stored
    what: str


@dataclass
class Plan:
    """missing, mismatched: of what whole weights of this kind hold. unused: names in the source that are left out."""

    kind: str
    source: Source
    items: list[Item] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        return not self.missing and not self.mismatched

    def count(self, what: str) -> int:
        return sum(item.what == what for item in self.items)

    def report(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        return {
            "source": str(self.source.path), "format": self.source.format, "section": self.source.section,
            "kind": self.kind, "whole": self.whole,
            "tensors": [
                {"name": item.name, "source": item.source, "shape": list(item.stored.shape),
                 "dtype": item.stored.dtype, "what": item.what} for item in self.items
            ],
            "missing": self.missing, "unused": self.unused,
            "mismatched": [{"name": name, "shape": list(found), "expected": list(wanted)}
                           for name, found, wanted in self.mismatched],
        }  # fmt: skip


def make_plan(source: Source, kind: str | None = None) -> Plan:
    """Names and shapes of PyTorch for all weights of a source. ``kind``: one of ``KINDS``; None: what names tell.

    PayloadError where the kind cannot be told, or two tensors would get one name.
    """
    names = {old: to_torch(old) for old in source.weights}
    state = [old for old, new in names.items() if old.startswith(TRAINING_STATE) or new.startswith(TRAINING_STATE)]
    names = {old: new for old, new in names.items() if old not in set(state)}
    found = kind or kind_of(names.values())
    if found not in KINDS:
        raise _bad(
            source, "cannot tell what these weights are of",
            f"its names are like {', '.join(list(names)[:3]) or '(none)'}", f"say it with --kind: {', '.join(KINDS)}",
        )  # fmt: skip
    plan = Plan(found, source, unused=[*source.others, *state])
    if found in _TRANSFORMERS and all(name.startswith("module.") for name in names.values()):
        names = {old: new.removeprefix("module.") for old, new in names.items()}
    if found in ("vae", "vae2d"):
        renamed = from_stable_diffusion(names.values())
        names = {old: renamed[new] for old, new in names.items()}
    for old, new in names.items():
        if found == "t5" and new.startswith(("decoder.", "lm_head.")):
            plan.unused.append(old)
            continue
        stored = _reshaped(found, new, source.weights[old])
        what = "reshaped" if stored.shape != source.weights[old].shape else "matched" if new == old else "renamed"
        plan.items.append(Item(new, old, stored, what))
    _check_names(plan)
    _compare(plan)
    return plan


def _reshaped(kind: str, name: str, stored: Stored) -> Stored:
    """A patch convolution in three dimensions, attention of autoencoders as linear layers."""
    shape = stored.shape
    if kind in _TRANSFORMERS and name == "x_embedder.proj.weight":
        if len(shape) == 4:
            return stored.reshaped((shape[0], shape[1], 1, *shape[2:]))
        if len(shape) == 2 and shape[1] % 4 == 0:  # the reference's linear form of patches of 1 x 2 x 2
            return stored.reshaped((shape[0], shape[1] // 4, 1, 2, 2))
    if kind in ("vae", "vae2d") and ATTENTION_1X1.search(name) and len(shape) == 4:
        return stored.reshaped(shape[:2])
    return stored


def _check_names(plan: Plan) -> None:
    seen: dict[str, str] = {}
    for item in plan.items:
        if item.name in seen:
            raise _bad(
                plan.source, f"two tensors would be called {item.name}", f"{seen[item.name]} and {item.source}",
                "choose one part of the file with --take",
            )  # fmt: skip
        seen[item.name] = item.source


def _compare(plan: Plan) -> None:
    """What is missing, or of another shape, against whole weights; leaves out what does not belong to them."""
    shapes = {item.name: item.stored.shape for item in plan.items}
    try:
        wanted = expected_shapes(plan.kind, shapes)
    except (KeyError, IndexError) as error:
        plan.missing.append(str(error.args[0]) if isinstance(error, KeyError) else "x_embedder.proj.weight of 5 sides")
        return
    except ValueError as error:
        raise _bad(
            plan.source, f"these are no weights of {plan.kind}", str(error), "name the kind with --kind"
        ) from None
    for name, shape in wanted.items():
        if name not in shapes:
            if not OPTIONAL.search(name):
                plan.missing.append(name)
        elif shape is not None and shapes[name] != shape:
            plan.mismatched.append((name, shapes[name], shape))
    if plan.kind in _TRANSFORMERS:
        extra = {item.name for item in plan.items if item.name not in wanted and not OPTIONAL.search(item.name)}
        plan.unused += [item.source for item in plan.items if item.name in extra]
        plan.items = [item for item in plan.items if item.name not in extra]


def in_mindspore(plan: Plan) -> list[Item]:
    """The same tensors as the reference's MindSpore models name and shape them."""
    levels = levels_of(item.name for item in plan.items)
    items = []
    for item in plan.items:
        stored, name = item.stored, item.name
        if plan.kind in ("vae", "vae2d"):
            if ATTENTION_1X1.search(name):
                stored = stored.reshaped((*stored.shape, 1, 1))
            name = to_stable_diffusion(name, levels)
        name = to_mindspore(name, plan.kind)
        what = "reshaped" if stored.shape != item.stored.shape else "matched" if name == item.source else "renamed"
        items.append(Item(name, item.source, stored, what))
    return items


def _bad(source: Source, what: str, why: str, next_step: str) -> PayloadError:
    return PayloadError(BAD_CHECKPOINT, what, where=str(source.path), why=why, next_step=next_step)

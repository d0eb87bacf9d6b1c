"""A golden case on disk: configuration, inputs, recorded outputs, weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file

if TYPE_CHECKING:
    from mindspore import Tensor

Arrays = dict[str, np.ndarray]


class CaseError(Exception):
    """The case cannot be run: unreadable, of a kind not known, or with content this checker does not understand."""


@dataclass
class Case:
    """``slack`` is filled by a runner: per output, how far each entry may move by float32's gradient error alone.

    ``given`` and ``expected`` are inputs.json and outputs.json: texts, tables and decisions.
    """

    path: Path
    config: dict[str, Any]
    inputs: Arrays
    outputs: Arrays
    weights: Arrays = field(default_factory=dict)
    slack: Arrays = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)
    expected: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def version(self) -> str:
        """``v1.0``, ``v1.1`` or ``v1.2``: the branch the case was recorded from. CaseError where it does not say."""
        for key in ("branch", "cls", "case"):
            found = re.search(r"v1[._]([012])(?!\d)", str(self.config.get(key, "")))
            if found:
                return f"v1.{found[1]}"
        raise CaseError("config.json does not say which branch the case was recorded from")

    def tensor(self, key: str) -> Tensor | None:
        """An input as a MindSpore tensor, None where the case has none."""
        from mindspore import Tensor  # takes seconds; cases without tensors do without it

        value = self.inputs.get(key)
        return None if value is None else Tensor(np.asarray(value, order="C"))

    def need(self, key: str) -> Tensor:
        """An input as a MindSpore tensor. CaseError where the case has none."""
        value = self.tensor(key)
        if value is None:
            raise CaseError(f"inputs.safetensors has no {key!r}")
        return value

    def under(self, prefix: str) -> list[str]:
        """Names of recorded outputs below ``prefix/``, without it."""
        return [key[len(prefix) + 1 :] for key in self.outputs if key.startswith(prefix + "/")]


def load_case(path: Path) -> Case:
    """Reads a case folder. CaseError names the file that is missing or broken."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        arrays = {name: _arrays(path / f"{name}.safetensors") for name in ("inputs", "outputs", "weights")}
        tables = {name: _table(path / f"{file}.json") for name, file in (("given", "inputs"), ("expected", "outputs"))}
    except Exception as error:  # safetensors raises its own type for a broken file
        raise CaseError(f"cannot read the case: {error}") from error
    if not isinstance(config, Mapping):
        raise CaseError("config.json does not hold an object")
    return Case(path, dict(config), **arrays, **tables)


def _arrays(path: Path) -> Arrays:
    return load_file(path) if path.exists() else {}


def _table(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def part(weights: Arrays, prefix: str) -> Arrays:
    """The weights below ``prefix.``, without it."""
    return {key[len(prefix) + 1 :]: value for key, value in weights.items() if key.startswith(prefix + ".")}

"""Checkpoints as a person looks at them: what several nodes hold, put together by step. Needs no numpy."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from models.checkpoint.folder import hash_bytes, hash_file
from models.checkpoint.manifest import MANIFEST, STATE, BadManifest, Manifest

_NAME = re.compile(r"step-(\d+)(\.broken)?")


class Holding(Protocol):
    """One node's folder of one step. Errors of reading are OSError."""

    @property
    def node(self) -> str: ...

    @property
    def name(self) -> str:
        """The folder's: ``step-N``, or ``step-N.broken``."""
        ...

    def sizes(self) -> Mapping[str, int]:
        """File -> bytes."""
        ...

    def read(self, file: str) -> bytes:
        """A small file."""
        ...

    def sha256(self, file: str) -> str:
        """The hash of a file of any size."""
        ...

    def place(self, file: str) -> str:
        """Where the file is, for people."""
        ...


@dataclass(frozen=True)
class LocalHolding:
    """A step's folder on this machine."""

    node: str
    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def sizes(self) -> Mapping[str, int]:
        return {entry.name: entry.stat().st_size for entry in self.path.iterdir() if entry.is_file()}

    def read(self, file: str) -> bytes:
        return (self.path / file).read_bytes()

    def sha256(self, file: str) -> str:
        return hash_file(self.path / file)

    def place(self, file: str) -> str:
        return str(self.path / file)


@dataclass
class View:
    """One step under one manifest, over all nodes looked at.

    manifest: None where no node has a readable one. state: the facts, None if unknown.
    shards: by number, those who hold the shard in its right size. problems: what is wrong, with its place.
    aside: a resume has passed it over (``step-N.broken``).
    """

    step: int
    manifest: Manifest | None
    state: dict[str, Any] | None
    holdings: list[Holding]
    shards: dict[int, list[Holding]]
    problems: list[str] = field(default_factory=list)
    aside: bool = False

    @property
    def whole(self) -> bool:
        """As far as names and sizes tell."""
        return self.manifest is not None and self.state is not None and len(self.shards) == len(self.manifest.shards)

    @property
    def name(self) -> str:
        return f"step-{self.step}" + (".broken" if self.aside else "")


def local_holdings(folders: Mapping[str, Path]) -> list[LocalHolding]:
    """Steps in folders of checkpoints, by node."""
    return [
        LocalHolding(node, path)
        for node, folder in folders.items()
        for path in sorted(folder.iterdir())
        if path.is_dir() and _NAME.fullmatch(path.name)
    ]


def views(holdings: Iterable[Holding]) -> list[View]:
    """Steps oldest first. A node whose manifest is lost counts with the others of that step."""
    found: dict[tuple[str, str], View] = {}
    orphans: list[tuple[Holding, str]] = []
    for holding in holdings:
        manifest, problem = _manifest_of(holding)
        if manifest is None:
            orphans.append((holding, problem))
            continue
        view = found.setdefault((holding.name, manifest.digest), _empty(holding.name, manifest))
        view.holdings.append(holding)
    for holding, problem in orphans:
        views_ = [view for view in found.values() if view.name == holding.name]
        if not views_:
            views_ = [found.setdefault((holding.name, ""), _empty(holding.name, None))]
        for view in views_:
            view.holdings.append(holding)
            view.problems.append(f"{holding.place(MANIFEST)} {problem}")
    for view in found.values():
        _examine(view)
    return sorted(
        found.values(), key=lambda view: (view.step, not view.aside, view.manifest.time if view.manifest else 0.0)
    )


def _empty(name: str, manifest: Manifest | None) -> View:
    match = _NAME.fullmatch(name)
    assert match is not None
    return View(int(match[1]), manifest, None, [], {}, aside=bool(match[2]))


def _manifest_of(holding: Holding) -> tuple[Manifest | None, str]:
    try:
        if MANIFEST not in holding.sizes():
            return None, "is missing"
        manifest = Manifest.decode(holding.read(MANIFEST))
    except OSError as error:
        return None, f"cannot be read: {error.strerror}"
    except BadManifest as error:
        return None, str(error)
    expected = holding.name.removesuffix(".broken")
    return (manifest, "") if expected == f"step-{manifest.step}" else (None, f"is that of step {manifest.step}")


def _examine(view: View) -> None:
    """Who has what, by sizes; the facts."""
    if view.manifest is None:
        return
    listed = [(holding, holding.sizes()) for holding in view.holdings]
    for number, shard in enumerate(view.manifest.shards):
        for holding, sizes in listed:
            if sizes.get(shard.file) == shard.size:
                view.shards.setdefault(number, []).append(holding)
            elif shard.file in sizes:
                view.problems.append(
                    f"{holding.place(shard.file)} has {sizes[shard.file]} bytes instead of {shard.size}"
                )
        if not any(shard.file in sizes for _, sizes in listed):
            view.problems.append(f"{shard.file} is missing (written on {', '.join(shard.nodes)})")
    for holding in view.holdings:
        facts = _state_of(view, holding)
        view.state = facts if view.state is None else view.state


def _state_of(view: View, holding: Holding) -> dict[str, Any] | None:
    assert view.manifest is not None
    try:
        data = holding.read(STATE)
    except OSError as error:
        view.problems.append(f"{holding.place(STATE)} cannot be read: {error.strerror}")
        return None
    if hash_bytes(data) != view.manifest.state_sha256:
        view.problems.append(f"{holding.place(STATE)} does not have the content its manifest says")
        return None
    facts: dict[str, Any] = json.loads(data)
    return facts


def verify(view: View, progress: Callable[[int], None] = lambda size: None) -> dict[int, Holding]:
    """Hashes every shard wherever it is; by number, the first one that has it whole.

    Adds what is wrong to ``view.problems``. ``progress`` is told the bytes of each file read.
    """
    if view.manifest is None:
        return {}
    good: dict[int, Holding] = {}
    for number, holdings in sorted(view.shards.items()):
        shard = view.manifest.shards[number]
        for holding in holdings:
            try:
                right = holding.sha256(shard.file) == shard.sha256
                problem = "" if right else "does not have the content its manifest says"
            except OSError as error:
                problem = f"cannot be read: {error.strerror}"
            if problem:
                view.problems.append(f"{holding.place(shard.file)} {problem}")
            else:
                good.setdefault(number, holding)
            progress(shard.size)
    return good

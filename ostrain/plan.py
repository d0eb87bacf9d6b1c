"""LaunchPlan: what the compiler returns and a backend carries out. Pure data, the same from JSON and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PlanFile:
    """A rendered file. ``path`` is relative to the run directory; ``mode`` its permission bits."""

    path: str
    text: str
    mode: int = 0o644


@dataclass(frozen=True)
class NodeAccess:
    """How to reach a node and where ostrain lives on it. Empty strings and 0 mean: as ~/.ssh/config says."""

    host: str
    user: str = ""
    port: int = 0
    identity_file: str = ""
    root: str = "~/.ostrain"
    python: str = "python3"


@dataclass(frozen=True)
class NodePlan:
    """One node's part: its ranks, its files, the command its agent starts inside the run directory."""

    name: str
    node_rank: int
    access: NodeAccess
    address: str
    ranks: tuple[int, ...]
    devices: tuple[int, ...]
    command: tuple[str, ...]
    files: tuple[PlanFile, ...]


@dataclass(frozen=True)
class LaunchPlan:
    """A compiled job.

    spares: nodes of the run beyond ``nodes``: kept ready to take a failed node's place, or given up (docs/recovery.md).
    restart: the job's ``restart`` section; empty where nobody supervises the run.
    job: what the plan is compiled from again when nodes change (``ostrain.supervisor.resolved``); empty likewise.
    task: what the payload does (``models.config.tasks``); its configuration is the file ``<task>.yaml``.
    sources: name -> path on the submitting machine; pushed once per content, found as ``files/<name>``.
    secrets: environment variable -> name of the secret. Values never enter a plan.
    master_port: 0 means: the first node's agent picks a free one at each start.
    service: what the backend of a service (ModelArts) wants to know beyond nodes: the inventory's section of its name.
    checks: what a node is probed for before a start (see ``cluster.agent`` probe): device, devices, min_free_bytes,
        modules (importable Python modules), programs (on PATH).
    """

    name: str
    backend: str
    launcher: str
    device: str
    layout: dict[str, Any]
    world: int
    master_address: str
    master_port: int
    steps: int
    nodes: tuple[NodePlan, ...]
    sources: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    checks: dict[str, Any] = field(default_factory=dict)
    task: str = "train"
    service: dict[str, Any] = field(default_factory=dict)
    spares: tuple[NodePlan, ...] = ()
    restart: dict[str, Any] = field(default_factory=dict)
    job: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> LaunchPlan:
        data = json.loads(text)
        parts = {key: tuple(_node(node) for node in data.get(key, ())) for key in ("nodes", "spares")}
        return cls(**{**data, **parts})

    def node(self, name: str) -> NodePlan:
        """A node of the run, a spare among them. StopIteration for others."""
        return next(node for node in (*self.nodes, *self.spares) if node.name == name)

    def everywhere(self) -> LaunchPlan:
        """The plan with every node that may hold something of the run: for stopping and deleting, not for starting."""
        return dataclasses.replace(self, nodes=(*self.nodes, *self.spares))

    def only(self, names: Collection[str]) -> LaunchPlan:
        """The plan with some of its nodes, spares among them."""
        nodes = tuple(node for node in (*self.nodes, *self.spares) if node.name in names)
        return dataclasses.replace(self, nodes=nodes)


def _node(data: dict[str, Any]) -> NodePlan:
    made = {key: tuple(data[key]) for key in ("ranks", "devices", "command")}
    files = tuple(PlanFile(**file) for file in data["files"])
    return NodePlan(**{**data, **made, "access": NodeAccess(**data["access"]), "files": files})

"""LaunchPlan: what the compiler returns and a backend carries out. Pure data, the same from JSON and back."""

from __future__ import annotations

import dataclasses
import json
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

    task: what the payload does (``models.config.tasks``); its configuration is the file ``<task>.yaml``.
    sources: name -> path on the submitting machine; pushed once per content, found as ``files/<name>``.
    secrets: environment variable -> name of the secret. Values never enter a plan.
    master_port: 0 means: the first node's agent picks a free one at each start.
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

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> LaunchPlan:
        data = json.loads(text)
        nodes = tuple(
            NodePlan(
                **{
                    **node,
                    "access": NodeAccess(**node["access"]),
                    "ranks": tuple(node["ranks"]),
                    "devices": tuple(node["devices"]),
                    "command": tuple(node["command"]),
                    "files": tuple(PlanFile(**file) for file in node["files"]),
                }
            )
            for node in data["nodes"]
        )
        return cls(**{**data, "nodes": nodes})

    def node(self, name: str) -> NodePlan:
        return next(node for node in self.nodes if node.name == name)

"""LaunchPlan: what the compiler returns and a backend carries out. Pure data, the same from JSON and back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

SHARED_FROM = 64 << 10  # characters


@dataclass(frozen=True)
class PlanFile:
    """A rendered file. ``path`` is relative to the run directory; ``mode`` its permission bits."""

    path: str
    text: str
    mode: int = 0o644


@dataclass(frozen=True)
class NodeAccess:
    """How to reach a node and where ostrain lives on it. Empty strings and 0 mean: as ~/.ssh/config says.

    inventory: file that lists the node; host keys are pinned beside it (docs/preflight.md). Empty: nowhere.
    """

    host: str
    user: str = ""
    port: int = 0
    identity_file: str = ""
    root: str = "~/.ostrain"
    python: str = "python3"
    inventory: str = ""


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
    service: what the backend of a service (Slurm, ModelArts) wants to know beyond nodes (``ostrain.service_files``).
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
        """A large text that several nodes have (a rank table) stands once, under ``shared``: SHA-256 -> text. Where it
        belongs a file has ``shared`` in place of ``text``."""
        data = dataclasses.asdict(self)
        shared = _share_texts([*data["nodes"], *data["spares"]])
        return json.dumps({**data, **({"shared": shared} if shared else {})}, indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> LaunchPlan:
        data = json.loads(text)
        shared = data.pop("shared", {})
        parts = {key: tuple(_node(node, shared) for node in data.get(key, ())) for key in ("nodes", "spares")}
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


def _share_texts(nodes: list[dict[str, Any]]) -> dict[str, str]:
    """Take large texts that stand more than once out of the nodes' files. Returns them by their hash."""
    files = [file for node in nodes for file in node["files"] if len(file["text"]) >= SHARED_FROM]
    counts = Counter(file["text"] for file in files)
    names = {
        text: hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        for text, count in counts.items()
        if count > 1
    }
    for file in files:
        if file["text"] in names:
            file["shared"] = names[file.pop("text")]
    return {name: text for text, name in names.items()}


def _node(data: dict[str, Any], shared: dict[str, str]) -> NodePlan:
    made = {key: tuple(data[key]) for key in ("ranks", "devices", "command")}
    files = tuple(
        PlanFile(file["path"], shared[file["shared"]] if "shared" in file else file["text"], file["mode"])
        for file in data["files"]
    )
    return NodePlan(**{**data, **made, "access": NodeAccess(**data["access"]), "files": files})

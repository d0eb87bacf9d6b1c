"""The one interface of every backend: stage, start, poll, follow, stop, remove.

Every call that reaches several nodes does so in parallel and returns a map node name -> result **or** exception
(``NodeError``), so that one dead node never hides the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ostrain.errors import OstrainError
from ostrain.plan import LaunchPlan

T = TypeVar("T")
PerNode = dict[str, "T | NodeError"]


class NodeError(OstrainError):
    """A node could not be reached or did not do as asked. ``kind`` is one of: unreachable, host_key_unknown,
    host_key_changed, auth_failed, python_missing, module_missing, program_missing, port_taken, disk_full,
    devices_missing, permission, no_run, fenced, protocol."""

    def __init__(
        self, kind: str, what: str, *, node: str, why: str = "", next_step: str = "", exit_code: int = 4
    ) -> None:
        super().__init__(what, where=f"node {node}", why=why, next_step=next_step, exit_code=exit_code)
        self.kind = kind
        self.node = node


@dataclass(frozen=True)
class RunRef:
    """A run as a backend needs it."""

    run_id: str
    plan: LaunchPlan


@dataclass(frozen=True)
class Chunk:
    """Bytes ``[offset, offset + len)`` of a followed file, as text (surrogateescape)."""

    node: str
    path: str
    offset: int
    end: int
    text: str


@dataclass(frozen=True)
class NodeNews:
    """A change of a node's status while following. ``status`` is the agent's status object (docs/run-directory.md)."""

    node: str
    status: Mapping[str, Any]


@dataclass(frozen=True)
class FollowLost:
    """The stream of a node broke and will be tried again, or (``final``) has been given up."""

    node: str
    error: NodeError
    final: bool


@dataclass(frozen=True)
class Tick:
    """A node has nothing new and says so: it is there."""

    node: str


FollowItem = Chunk | NodeNews | FollowLost | Tick


class Backend(Protocol):
    """What the CLI knows of a backend. All waits are bounded; ``timeout`` is in seconds a node."""

    name: str

    def probe(self, plan: LaunchPlan, *, timeout: float = 30.0) -> PerNode[dict[str, Any]]:
        """Look at every node without changing it; a failed check is the node's NodeError (exit code 3 or 4)."""
        ...

    def stage(self, run: RunRef, bundle: Path, *, timeout: float = 600.0) -> PerNode[None]:
        """Put code bundle, sources and plan files on every node; what is there by content hash is not sent again."""
        ...

    def start(self, run: RunRef, attempt: int, secrets: Mapping[str, str], *, timeout: float = 60.0) -> PerNode[None]:
        """Start the agents of an attempt. Secrets travel on the agent's standard input only."""
        ...

    def poll(self, run: RunRef, *, timeout: float = 15.0) -> PerNode[dict[str, Any]]:
        """The agent's status object of every node."""
        ...

    def stacks(self, run: RunRef, *, timeout: float = 8.0) -> PerNode[dict[str, Any]]:
        """What every worker is at: the answer of the agent's verb ``stacks`` (docs/run-directory.md) of every node.

        Returns within ``timeout`` seconds; a node that has not answered by then is a NodeError (unreachable).
        """
        ...

    def follow(
        self,
        run: RunRef,
        cursors: Mapping[str, Mapping[str, int]],
        patterns: tuple[str, ...],
        *,
        until_final: bool = True,
    ) -> Iterator[FollowItem]:
        """Stream files matching ``patterns`` (globs in the run directory) from byte offsets ``cursors[node][path]``.

        Reconnects by itself with bounded back-off. Ends when every node's attempt is final and all bytes were read
        (``until_final``), or at once after what there is (not ``until_final``).
        """
        ...

    def fetch(self, run: RunRef, node: str, path: str, *, limit: int = 64 << 20, offset: int = 0) -> bytes:
        """The content of one file of a node's run directory: at most ``limit`` bytes from ``offset`` on."""
        ...

    def files(
        self, run: RunRef, patterns: tuple[str, ...], *, hashes: bool = False, timeout: float = 60.0
    ) -> PerNode[dict[str, Any]]:
        """Files matching ``patterns`` (globs in the run directory) of every node: path -> {size, sha256}.

        sha256 is None unless ``hashes`` are asked for; then every file is read where it lies.
        """
        ...

    def stop(self, run: RunRef, *, grace: float = 10.0, reason: str = "cancelled") -> PerNode[dict[str, Any]]:
        """End exactly the tagged processes of the run on every node; the kill report of docs/run-directory.md."""
        ...

    def remove(self, run: RunRef, *, timeout: float = 60.0) -> PerNode[None]:
        """Delete the run directories. Refuses (NodeError) while processes of the run live."""
        ...

    def close(self) -> None:
        """Close connections."""
        ...

"""The backend ``local``: this machine, the same agent, no connection."""

from __future__ import annotations

import os
import sys
from typing import Any

from cluster import agent
from cluster.backend import NodeError, PerNode, RunRef
from cluster.client import AgentClient
from cluster.local import LocalTransport
from cluster.node_backend import NodeBackend
from ostrain.paths import state_dir
from ostrain.plan import NodeAccess, NodePlan


def local_root(access: NodeAccess) -> str:
    """Where local runs live: ``$XDG_STATE_HOME/ostrain`` unless the plan says otherwise."""
    if access.root in ("", NodeAccess.root):
        return str(state_dir())
    return os.path.abspath(os.path.expanduser(access.root))


def _connect(node: NodePlan) -> AgentClient:
    python = sys.executable if node.access.python in ("", NodeAccess.python) else node.access.python
    return AgentClient(LocalTransport(node.name), python, local_root(node.access))


class LocalBackend(NodeBackend):
    """``poll`` reads the run directory itself: ``ostrain status`` must answer at once."""

    def __init__(self) -> None:
        super().__init__("local", _connect)

    def poll(self, run: RunRef, *, timeout: float = 15.0) -> PerNode[dict[str, Any]]:
        answers: PerNode[dict[str, Any]] = {}
        for node in run.plan.nodes:
            path = f"{local_root(node.access)}/runs/{run.run_id}/{node.name}"
            try:
                told = agent.status(path)
                # One machine, one clock: no question travelled anywhere.
                answers[node.name] = {**told, **dict.fromkeys(("asked", "answered"), told["time"])}
            except agent.AgentError as error:
                answers[node.name] = self.client(node).as_error(error.info)
            except OSError as error:
                answers[node.name] = NodeError("permission", "the run cannot be read", node=node.name, why=str(error))
        return answers


def open_backend() -> LocalBackend:
    return LocalBackend()

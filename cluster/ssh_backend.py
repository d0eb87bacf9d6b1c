"""The backend ``ssh``: agents on nodes reached over SSH. Imports paramiko; only ``cluster.backends`` imports this."""

from __future__ import annotations

from cluster.client import AgentClient
from cluster.node_backend import NodeBackend
from cluster.ssh import SSHTransport
from ostrain.plan import NodePlan


def _connect(node: NodePlan) -> AgentClient:
    return AgentClient(SSHTransport(node.name, node.access), node.access.python, node.access.root)


def open_backend() -> NodeBackend:
    return NodeBackend("ssh", _connect)

"""What a recovery needs of nodes beyond a backend's verbs: fences, devices that are free, pieces of checkpoints.

For backends that reach nodes one by one (``local``, ``ssh``). Slurm and ModelArts place their own nodes.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from typing import Any

from cluster.backend import Backend, NodeError, PerNode, RunRef
from cluster.client import AgentClient
from cluster.node_backend import NodeBackend
from cluster.transport import fan_out
from ostrain.plan import NodePlan

PORTION = 8 << 20
_PROCESS = re.compile(r"^\|\s*(\d+)\s+(\d+)\s*\|\s*(\d+)\s*\|\s*(.*?)\s*\|")


class NodeRecovery:
    """Recovery verbs over a NodeBackend's connections. Every call is bounded by ``timeout`` seconds a node."""

    def __init__(self, backend: NodeBackend) -> None:
        self._backend = backend

    def fence(self, run: RunRef, nodes: Sequence[NodePlan], attempt: int, *, timeout: float) -> PerNode[dict[str, Any]]:
        """No attempt before ``attempt`` starts on these nodes again, and what runs of one there is ended: the kill
        report of docs/run-directory.md. NodeError (unreachable) where a node does not answer."""

        def one(client: AgentClient) -> dict[str, Any]:
            request = {"attempt": attempt, "grace": 2.0}
            return client.call("fence", client.run_dir(run.run_id, timeout), input=request, timeout=timeout)

        return fan_out({node.name: self._backend.client(node) for node in nodes}, one)

    def holders(self, nodes: Sequence[NodePlan], *, timeout: float) -> PerNode[list[str]]:
        """Who holds the nodes' devices according to ``npu-smi info``: ``device 3: pid 4711 (python)``.

        Empty where the devices are free, and where there is no npu-smi to ask.
        """

        def one(node: NodePlan) -> list[str]:
            client = self._backend.client(node)
            script = b"PATH=$PATH:/usr/local/bin:/usr/local/sbin; command -v npu-smi >/dev/null || exit 0; npu-smi info"
            result = client.transport.run(["sh", "-s"], script, timeout=timeout)
            return device_holders(result.stdout.decode("utf-8", "replace"), node.devices)

        return fan_out({node.name: node for node in nodes}, one)

    def copy(
        self, run: RunRef, path: str, source: NodePlan, target: NodePlan, *, size: int, sha256: str, timeout: float
    ) -> None:
        """One file of the run directory from node to node, through this machine, in portions; the target checks its
        hash before it gives it its name. NodeError of the node that failed; ``timeout``: of each portion."""
        reader, writer = self._backend.client(source), self._backend.client(target)
        run_dir = writer.run_dir(run.run_id, timeout)
        offset = 0
        while True:
            data = self._backend.fetch(run, source.name, path, limit=PORTION, offset=offset)
            head = {"path": path, "offset": offset, "size": size, "sha256": sha256}
            portion = io.BytesIO(json.dumps(head).encode() + b"\n" + data)
            writer.call("put", run_dir, input=portion, timeout=timeout)
            offset += len(data)
            if offset >= size:
                return
            if not data:
                raise NodeError("protocol", f"{path} ends after {offset} of {size} bytes", node=reader.node)


def recovery_of(backend: Backend) -> NodeRecovery | None:
    """The recovery verbs of a backend; None where its nodes are not ours to choose."""
    return NodeRecovery(backend) if isinstance(backend, NodeBackend) else None


def device_holders(text: str, devices: Sequence[int]) -> list[str]:
    """The rows of npu-smi's table of processes that concern ``devices`` (NPU numbers)."""
    _, _, table = text.partition("Process id")
    found = []
    for line in table.splitlines():
        match = _PROCESS.match(line.strip())
        if match and int(match[1]) in devices:
            found.append(f"device {match[1]}: pid {match[3]}" + (f" ({match[4]})" if match[4] else ""))
    return found

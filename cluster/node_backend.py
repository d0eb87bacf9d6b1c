"""The backend of everything that is reached node by node: staging, starting, watching and ending through the agents."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from cluster.backend import FollowItem, NodeError, PerNode, RunRef
from cluster.bundle import build_source, hash_file
from cluster.client import PREFLIGHT, AgentClient
from cluster.deadline import fan_out_within
from cluster.follow import Open, follow
from cluster.inspection import Inspection, inspect_node
from cluster.transport import Stream, fan_out
from ostrain.plan import LaunchPlan, NodePlan

T = TypeVar("T")
STOP_MARGIN = 30.0  # seconds beyond the grace that a stop may take


class NodeBackend:
    """A Backend (cluster.backend) over one AgentClient a node. ``connect`` makes a node's client; nothing is opened
    before it is used."""

    def __init__(self, name: str, connect: Callable[[NodePlan], AgentClient]) -> None:
        self.name = name
        self._connect = connect
        self._clients: dict[str, AgentClient] = {}

    def client(self, node: NodePlan) -> AgentClient:
        if node.name not in self._clients:
            self._clients[node.name] = self._connect(node)
        return self._clients[node.name]

    def _each(self, plan: LaunchPlan, call: Callable[[NodePlan, AgentClient], T]) -> PerNode[T]:
        for node in plan.nodes:  # made here, not in the threads
            self.client(node)
        return fan_out({node.name: node for node in plan.nodes}, lambda node: call(node, self.client(node)))

    def probe(self, plan: LaunchPlan, *, timeout: float = 30.0) -> PerNode[dict[str, Any]]:
        def one(node: NodePlan, client: AgentClient) -> dict[str, Any]:
            request = _probe_request(plan, node)
            answer = client.call("probe", input={**request, "root": client.root(timeout)}, timeout=timeout)
            if answer["problems"]:
                raise _as_one(client, answer["problems"])
            return answer

        return self._each(plan, one)

    def inspect(
        self, plan: LaunchPlan, requests: Mapping[str, dict[str, Any]], *, timeout: float = 60.0
    ) -> PerNode[Inspection]:
        """See ``cluster.inspection.Inspects``."""

        def one(node: NodePlan, client: AgentClient) -> Inspection:
            return inspect_node(client, requests[node.name], timeout)

        return self._each(replace(plan, nodes=tuple(node for node in plan.nodes if node.name in requests)), one)

    def stage(self, run: RunRef, bundle: Path, *, timeout: float = 600.0) -> PerNode[None]:
        archives = {("bundles", hash_file(bundle)): bundle}
        links: dict[str, str] = {}
        for name, source in run.plan.sources.items():
            archive = build_source(Path(source))
            links[name] = hash_file(archive)
            archives["files", links[name]] = archive
        digest = next(iter(archives))[1]

        def one(node: NodePlan, client: AgentClient) -> None:
            _send_missing(client, archives, timeout)
            files = [{"path": file.path, "text": file.text, "mode": file.mode} for file in node.files]
            request = {"run_id": run.run_id, "node": node.name, "bundle": digest, "files": files, "links": links}
            client.call("stage", client.run_dir(run.run_id, timeout), input=request, timeout=timeout)

        return self._each(run.plan, one)

    def start(self, run: RunRef, attempt: int, secrets: Mapping[str, str], *, timeout: float = 60.0) -> PerNode[None]:
        try:
            port = run.plan.master_port or self._pick_port(run.plan, timeout)
        except NodeError as error:
            return {error.node: error}

        def one(node: NodePlan, client: AgentClient) -> None:
            request = _start_request(run, node, attempt, port)
            request["secrets"] = dict(secrets)
            client.call("start", client.run_dir(run.run_id, timeout), input=request, timeout=timeout)

        answers = self._each(run.plan, one)
        if any(isinstance(answer, NodeError) for answer in answers.values()):
            # No half-started run. A node that did not answer may have started, too: stop them all.
            self.stop(run, grace=2.0, reason="start_failed")
        return answers

    def _pick_port(self, plan: LaunchPlan, timeout: float) -> int:
        """A free port on the node the scheduler runs on."""
        master = _master(plan)
        client = self.client(master)
        request = {"root": client.root(timeout), "master_address": plan.master_address or master.address}
        answer = client.call("port", input=request, timeout=timeout)
        if not answer["port"]:
            raise _as_one(client, answer["problems"])
        return int(answer["port"])

    def poll(self, run: RunRef, *, timeout: float = 15.0) -> PerNode[dict[str, Any]]:
        def one(node: NodePlan, client: AgentClient) -> dict[str, Any]:
            run_dir = client.run_dir(run.run_id, timeout)
            asked = time.time()
            answer = client.call("status", run_dir, timeout=timeout)
            return {**answer, "asked": asked, "answered": time.time()}

        return self._each(run.plan, one)

    def evidence(self, run: RunRef, attempt: int, *, timeout: float = 30.0) -> PerNode[dict[str, Any]]:
        """What a fault left outside the run directories: the driver's and the kernel's log lines."""

        def one(node: NodePlan) -> dict[str, Any]:
            client = self.client(node)
            request = {"attempt": attempt}
            return client.call("evidence", client.run_dir(run.run_id, timeout), input=request, timeout=timeout)

        for node in run.plan.nodes:
            self.client(node)
        return fan_out_within({node.name: node for node in run.plan.nodes}, one, seconds=timeout)

    def stacks(self, run: RunRef, *, timeout: float = 8.0) -> PerNode[dict[str, Any]]:
        def one(node: NodePlan) -> dict[str, Any]:
            client = self.client(node)
            request = {"wait": min(3.0, timeout / 2)}
            return client.call("stacks", client.run_dir(run.run_id, timeout), input=request, timeout=timeout)

        for node in run.plan.nodes:
            self.client(node)
        return fan_out_within({node.name: node for node in run.plan.nodes}, one, seconds=timeout)

    def follow(
        self,
        run: RunRef,
        cursors: Mapping[str, Mapping[str, int]],
        patterns: tuple[str, ...],
        *,
        until_final: bool = True,
    ) -> Iterator[FollowItem]:
        return follow({node.name: self._opener(run, node) for node in run.plan.nodes}, cursors, patterns, until_final)

    def _opener(self, run: RunRef, node: NodePlan) -> Open:
        client = self.client(node)

        def open_stream(request: dict[str, Any]) -> Stream:
            run_dir = client.run_dir(run.run_id, 15.0)
            return client.stream("follow", run_dir, request=request, timeout=15.0)

        return open_stream

    def fetch(self, run: RunRef, node: str, path: str, *, limit: int = 64 << 20, offset: int = 0) -> bytes:
        client = self.client(run.plan.node(node))
        run_dir = client.run_dir(run.run_id, 30.0)
        answer = client.call("fetch", run_dir, input={"path": path, "limit": limit, "offset": offset}, timeout=120.0)
        return base64.b64decode(answer["data"])

    def files(
        self, run: RunRef, patterns: tuple[str, ...], *, hashes: bool = False, timeout: float = 60.0
    ) -> PerNode[dict[str, Any]]:
        def one(node: NodePlan, client: AgentClient) -> dict[str, Any]:
            request = {"patterns": list(patterns), "hash": hashes}
            answer = client.call("files", client.run_dir(run.run_id, timeout), input=request, timeout=timeout)
            return dict(answer["files"])

        return self._each(run.plan, one)

    def stop(self, run: RunRef, *, grace: float = 10.0, reason: str = "cancelled") -> PerNode[dict[str, Any]]:
        def one(node: NodePlan, client: AgentClient) -> dict[str, Any]:
            request = {"grace": grace, "reason": reason}
            run_dir = client.run_dir(run.run_id, STOP_MARGIN)
            return client.call("stop", run_dir, input=request, timeout=grace + STOP_MARGIN)

        return self._each(run.plan, one)

    def remove(self, run: RunRef, *, timeout: float = 60.0) -> PerNode[None]:
        def one(node: NodePlan, client: AgentClient) -> None:
            client.call("remove", client.run_dir(run.run_id, timeout), timeout=timeout)

        return self._each(run.plan, one)

    def close(self) -> None:
        for client in self._clients.values():
            client.close()


def _master(plan: LaunchPlan) -> NodePlan:
    return next((node for node in plan.nodes if node.address == plan.master_address), plan.nodes[0])


def _probe_request(plan: LaunchPlan, node: NodePlan) -> dict[str, Any]:
    checks = plan.checks
    request: dict[str, Any] = {key: checks[key] for key in ("min_free_bytes", "modules", "programs") if key in checks}
    if str(checks.get("device", plan.device)).lower() == "ascend":
        request["devices"] = list(node.devices)
    if plan.master_port and node is _master(plan):
        request["master_address"], request["master_port"] = plan.master_address, plan.master_port
    return request


def _start_request(run: RunRef, node: NodePlan, attempt: int, port: int) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "node": node.name,
        "attempt": attempt,
        "command": list(node.command),
        "ranks": list(node.ranks),
        "steps": run.plan.steps,
        "master_port": port,
        "grace": 5.0,
    }


def _send_missing(client: AgentClient, archives: Mapping[tuple[str, str], Path], timeout: float) -> None:
    """Unpack on the node what it does not have by content hash."""
    wanted: dict[str, list[str]] = {"bundles": [], "files": []}
    for kind, digest in archives:
        wanted[kind].append(digest)
    for kind, digest in client.call("have", input=wanted, timeout=timeout)["missing"]:
        with open(archives[kind, digest], "rb") as archive:
            client.call("unpack", kind, digest, input=archive, timeout=timeout)


def _as_one(client: AgentClient, problems: list[dict[str, str]]) -> NodeError:
    """All failed checks of a node as one error, the first one's kind."""
    joined = {key: "; ".join(dict.fromkeys(p[key] for p in problems if p.get(key))) for key in ("what", "why", "next")}
    error = client.as_error({"kind": problems[0]["kind"], **joined})
    error.exit_code = PREFLIGHT
    return error

"""Breaking things on nodes on purpose, and mending them: what `ostrain drill` can do from a user's account.

``NodeInjector`` works through the transports of a backend that reaches nodes one by one (``local``, ``ssh``). What a
user's account cannot do (power, cables) raises CannotInject, whose text tells why. A testbed has an injector of its own
that can do everything.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cluster import fault_agent
from cluster.backend import NodeError
from cluster.client import AgentClient, last_line
from cluster.node_backend import NodeBackend
from ostrain.errors import OstrainError
from ostrain.plan import NodePlan

SOURCE = Path(fault_agent.__file__)


class CannotInject(OstrainError):
    """A fault that cannot be made here: no power over the node, no right to its links, too large a disk."""

    def __init__(self, node: str, why: str) -> None:
        super().__init__("this fault cannot be made here", where=f"node {node}", why=why)


@dataclass(frozen=True)
class Held:
    """A fault that lasts: the process on the node that keeps it up, and until when it does at most (this clock)."""

    node: NodePlan
    effect: str
    pid: int
    start: int
    until: float


class Injector(Protocol):
    """What a drill needs. Times are seconds on the submitter's clock, taken just before the fault was made."""

    def look(self, node: NodePlan, run_id: str) -> dict[str, Any]:
        """``processes`` of the run on a node ({pid, start, state, command}) and ``free`` bytes where it writes."""
        ...

    def kill(self, node: NodePlan, run_id: str, pids: list[int]) -> float:
        """SIGKILL to processes of the run, and to no others."""
        ...

    def hold(self, node: NodePlan, run_id: str, effect: str, seconds: float, **more: Any) -> float:
        """Start a lasting fault: stop, slow (``pids``), fill, port (``address``, ``port``). It ends after ``seconds``
        by itself, whatever happens to this machine."""
        ...

    def cut_link(self, node: NodePlan, run_id: str, seconds: float | None) -> float:
        """Take the node off the network; None: for as long as the drill lasts."""
        ...

    def cut_sessions(self, node: NodePlan, run_id: str, seconds: float) -> float:
        """Kill the SSH sessions that serve the run and, where that is possible, sshd itself for so long."""
        ...

    def power_off(self, node: NodePlan, run_id: str) -> float:
        """The node is gone and does not come back while the drill lasts."""
        ...

    def mend(self) -> list[str]:
        """Undo everything that is still in force. Returns what could not be undone, and when it undoes itself."""
        ...


class NodeInjector:
    """From the account that runs the job. ``longest``: seconds after which a lasting fault undoes itself at the
    latest."""

    def __init__(self, backend: NodeBackend, *, longest: float = 900.0) -> None:
        self._backend = backend
        self._longest = longest
        self._held: list[Held] = []

    def look(self, node: NodePlan, run_id: str) -> dict[str, Any]:
        return self._call(node, "look", {"run": run_id, "root": self._client(node).root(15.0)})

    def kill(self, node: NodePlan, run_id: str, pids: list[int]) -> float:
        when = time.time()
        self._call(node, "kill", {"run": run_id, "pids": pids})
        return when

    def hold(self, node: NodePlan, run_id: str, effect: str, seconds: float, **more: Any) -> float:
        client, when = self._client(node), time.time()
        seconds = min(seconds, self._longest)
        request = {"run": run_id, "root": client.root(15.0), "effect": effect, "seconds": seconds, **more}
        answer = self._call(node, "hold", request, timeout=90.0)
        self._held.append(Held(node, effect, answer["pid"], answer["start"], time.time() + seconds))
        return when

    def cut_link(self, node: NodePlan, run_id: str, seconds: float | None) -> float:
        if self._backend.name == "local":
            raise CannotInject(node.name, "the run is on this machine: there is no link between it and you")
        return self.hold(node, run_id, "link", self._longest if seconds is None else seconds)

    def cut_sessions(self, node: NodePlan, run_id: str, seconds: float) -> float:
        if self._backend.name == "local":
            raise CannotInject(node.name, "the run is on this machine: no SSH session serves it")
        when = time.time()
        self._call(node, "cut_sessions", {"run": run_id}, may_break=True)
        return when

    def power_off(self, node: NodePlan, run_id: str) -> float:
        raise CannotInject(node.name, "nobody can switch a node off from an account on it")

    def mend(self) -> list[str]:
        left: list[str] = []
        for held in self._held:
            if time.time() > held.until:
                continue
            try:
                self._call(held.node, "mend", {"pid": held.pid, "start": held.start}, timeout=25.0)
            except (NodeError, CannotInject) as error:
                seconds = max(0.0, held.until - time.time())
                left.append(f"{held.effect} on {held.node.name} ends by itself within {seconds:.0f} s ({error.what})")
        self._held.clear()
        return left

    def _client(self, node: NodePlan) -> AgentClient:
        return self._backend.client(node)

    def _call(
        self, node: NodePlan, verb: str, request: dict[str, Any], *, timeout: float = 30.0, may_break: bool = False
    ) -> dict[str, Any]:
        """One verb of cluster/fault_agent.py. may_break: it may cut the very connection that carries the answer."""
        client = self._client(node)
        try:
            result = client.run_program(SOURCE.read_bytes(), verb, json.dumps(request), timeout=timeout)
        except NodeError as error:
            if may_break and error.kind == "unreachable":
                return {}
            raise
        try:
            answer: dict[str, Any] = json.loads(last_line(result.stdout))
        except ValueError:
            why = result.stderr.decode("utf-8", "replace").strip()[-500:]
            raise NodeError("protocol", f"{verb} gave no answer", node=node.name, why=why) from None
        if "error" in answer and answer["cannot"]:
            raise CannotInject(node.name, answer["error"])
        if "error" in answer:
            raise NodeError("protocol", "the fault could not be made", node=node.name, why=answer["error"])
        return answer

"""A run at the moment it is disturbed: who is there, and what a fault may use to disturb it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.injector import Injector
from ostrain.errors import OstrainError
from ostrain.plan import LaunchPlan, NodePlan


@dataclass(frozen=True)
class Worker:
    """A live worker. ``pid`` is the one on its node."""

    node: NodePlan
    rank: int
    pid: int


@dataclass
class Scene:
    """What a fault sees of the run and may do.

    random: seeded; every choice comes from it. statuses: the newest status object of each node. hang_timeout: seconds,
    of the job as it runs. kill_supervisor: SIGKILL to the process that supervises the run, and to the client that
    submitted it if that still lives; supervise: start a new one as a user would (``ostrain supervise``). sleep: waits,
    and notices when the run ends meanwhile.
    """

    run_id: str
    plan: LaunchPlan
    random: random.Random
    injector: Injector
    statuses: Mapping[str, Mapping[str, Any]]
    kill_supervisor: Callable[[], None]
    supervise: Callable[[], None]
    sleep: Callable[[float], None] = time.sleep

    def workers(self) -> list[Worker]:
        """Live workers, by rank."""
        found = []
        for node in self.plan.nodes:
            for one in self.statuses.get(node.name, {}).get("workers") or []:
                if one["state"] == "running" and one["rank"] is not None and one["pid"]:
                    found.append(Worker(node, one["rank"], one["pid"]))
        return sorted(found, key=lambda worker: worker.rank)

    def any_worker(self) -> Worker:
        workers = self.workers()
        if not workers:
            raise OstrainError(f"no worker of {self.run_id} is known to run", next_step=f"ostrain status {self.run_id}")
        return self.random.choice(workers)

    def any_node(self) -> NodePlan:
        return self.random.choice(self.plan.nodes)

    def agent_pid(self, node: NodePlan) -> int:
        agent = self.statuses.get(node.name, {}).get("agent") or {}
        if not agent.get("alive"):
            raise OstrainError(f"no agent of {self.run_id} is known to live", where=f"node {node.name}")
        return int(agent["pid"])

    def pids_of(self, node: NodePlan) -> list[int]:
        """The workers' processes on one node."""
        return [worker.pid for worker in self.workers() if worker.node.name == node.name]

"""Supervised runs of toy workers on "nodes" of this machine: real agents and processes, no MindSpore."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.backend import NodeError, RunRef
from cluster.client import AgentClient
from cluster.local import LocalTransport
from cluster.local_backend import local_root
from cluster.node_backend import NodeBackend
from cluster.transport import Input, Result
from ostrain.lifecycle import submit
from ostrain.plan import LaunchPlan, NodeAccess, NodePlan, PlanFile
from ostrain.status import RunStatus
from ostrain.store import Run, Store
from ostrain.supervisor import recover
from ostrain.supervisor.journal import Entry, read_journal
from ostrain.supervisor.layouts import Fit, Shape, shrink
from ostrain.supervisor.loop import supervise
from tests.cluster.toys import make_plan, node_plan, toy_bundle, wait_until

# Counts steps in its heartbeat; what it finds in `orders` it does: the text "<attempt> <rank> <step> <what>".
WORKER = """
import json, os, sys, time
rank, attempt = int(os.environ["RANK_ID"]), int(os.environ["OSTRAIN_ATTEMPT"])
steps, pace = 30, 0.04
def beat(step, phase):
    path = f"heartbeat/rank-{rank}"
    with open(path + ".tmp", "w") as file:
        json.dump({"step": step, "time": time.time(), "phase": phase}, file)
    os.replace(path + ".tmp", path)
beat(0, "starting")
print("ready", flush=True)
orders = [line.split(" ", 3) for line in open("orders").read().splitlines()] if os.path.exists("orders") else []
for step in range(steps + 1):
    for a, r, s, what in orders:
        if (int(a), int(r), int(s)) == (attempt, rank, step):
            exec(what)
    beat(step, "step")
    time.sleep(pace)
beat(steps, "done")
"""


class CutTransport(LocalTransport):
    """This machine as a node that can be cut off: what runs there goes on, nobody hears of it."""

    def __init__(self, node: str, cut: set[str]) -> None:
        super().__init__(node)
        self._cut = cut

    def check(self) -> None:
        if self.node in self._cut:
            raise NodeError("unreachable", "no route to host", node=self.node)

    def run(self, argv: Sequence[str], input: Input = b"", *, timeout: float) -> Result:
        self.check()
        return super().run(argv, input, timeout=timeout)

    def stream(self, argv: Sequence[str], input: bytes) -> Any:
        self.check()
        inner, check = super().stream(argv, input), self.check

        class Cuttable:
            def send(self, data: bytes) -> None:
                inner.send(data)

            def lines(self, silence: float) -> Iterator[bytes]:
                for line in inner.lines(silence):
                    check()
                    yield line

            def close(self) -> None:
                inner.close()

        return Cuttable()


class ToyBackend(NodeBackend):
    """``cut``: nodes that do not answer now."""

    def __init__(self) -> None:
        self.cut: set[str] = set()

        def connect(node: NodePlan) -> AgentClient:
            return AgentClient(CutTransport(node.name, self.cut), sys.executable, local_root(node.access))

        super().__init__("local", connect)


@dataclass
class ToySite:
    """The store of $XDG_STATE_HOME, a local backend and runs of toys under one folder."""

    folder: Path
    backend: ToyBackend = field(default_factory=ToyBackend)
    runs: list[RunRef] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = Store()

    def node(self, name: str, rank: int, orders: str = "") -> NodePlan:
        access = NodeAccess("localhost", root=str(self.folder / "root"), python=sys.executable)
        return node_plan(name, access, WORKER, (rank,), rank, files=(PlanFile("orders", orders),))

    def plan(self, nodes: int = 2, orders: str = "", **restart: Any) -> LaunchPlan:
        settings = {"max": 2, "backoff": 0.0, "node_timeout": 3.0, "hang_timeout": 2.0, **restart}
        parts = [self.node(f"n{number}", number, orders) for number in range(nodes)]
        return make_plan("local", parts, steps=30, restart=settings)

    def with_spares(self, plan: LaunchPlan, spares: int, monkeypatch: Any, orders: str = "") -> LaunchPlan:
        """The plan with further nodes, and compiled for others of them when the supervisor asks for that."""
        extra = tuple(dataclasses.replace(self.node(f"s{number}", 0), ranks=()) for number in range(spares))
        wanted = Shape(len(plan.nodes), 1, accumulation=1, batch=1)

        def compiled(plan: LaunchPlan, nodes: Sequence[str], fit: Fit | None) -> LaunchPlan:
            parts = tuple(self.node(name, rank, orders) for rank, name in enumerate(nodes))
            rest = tuple(one for one in (*plan.nodes, *plan.spares) if one.name not in nodes)
            return dataclasses.replace(plan, nodes=parts, spares=rest, world=len(parts))

        monkeypatch.setattr(recover, "shape_of", lambda plan: wanted)
        monkeypatch.setattr(recover, "best_fit", lambda plan, count: shrink(wanted, count))
        monkeypatch.setattr(recover, "recompiled", compiled)
        return dataclasses.replace(plan, spares=extra)

    def submit(self, plan: LaunchPlan) -> Run:
        run = submit(
            self.store, self.backend, plan, job_path="toy.yaml", bundle=toy_bundle(self.folder), secrets={},
            say=lambda text: None,
        )  # fmt: skip
        self.runs.append(RunRef(run.run_id, plan.everywhere()))
        return run

    def supervise(self, run: Run) -> RunStatus:
        return supervise(self.store, self.backend, run, secrets={}, patience=0.0)

    def in_thread(self, run: Run) -> tuple[threading.Thread, list[RunStatus]]:
        """Supervise in a thread, with a store of its own."""
        told: list[RunStatus] = []

        def work() -> None:
            told.append(supervise(Store(self.store.path), self.backend, run, secrets={}, patience=0.0))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread, told

    def run_dir(self, run: Run, node: str) -> Path:
        return self.folder / "root" / "runs" / run.run_id / node

    def status(self, run: Run, node: str) -> dict[str, Any]:
        answer = self.backend.poll(RunRef(run.run_id, self.store.get(run.run_id).plan.everywhere()))[node]
        assert not isinstance(answer, NodeError), answer
        return answer

    def wait_step(self, run: Run, node: str, step: int) -> dict[str, Any]:
        """The node's status once its rank has made so many steps."""

        def there() -> dict[str, Any] | None:
            status = self.status(run, node)
            beats = list(status["heartbeat"].values())
            return status if beats and beats[0]["step"] >= step and status["state"] == "RUNNING" else None

        found: dict[str, Any] = wait_until(there, 20.0, f"step {step} on {node}")
        return found

    def events(self, run: Run) -> list[Entry]:
        return read_journal(run.run_id)

    def close(self) -> None:
        self.backend.cut.clear()
        for run in self.runs:
            current = RunRef(run.run_id, run.plan)
            self.backend.stop(current, grace=0.0)
        self.backend.close()
        self.store.close()


def kill_worker(status: dict[str, Any], number: int = signal.SIGKILL) -> None:
    os.kill(status["workers"][0]["pid"], number)


def words(entries: list[Entry]) -> list[str]:
    return [entry.event for entry in entries]


def the(entries: list[Entry], event: str, where: Callable[[Entry], bool] = lambda entry: True) -> Entry:
    """The one entry of an event."""
    found = [entry for entry in entries if entry.event == event and where(entry)]
    assert len(found) == 1, [dataclasses.astuple(entry) for entry in entries]
    return found[0]

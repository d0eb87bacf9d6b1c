"""Toy launch plans: real agents and processes, no MindSpore."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.backend import Backend, NodeError, PerNode, RunRef
from cluster.bundle import AGENT, pack
from ostrain.plan import LaunchPlan, NodeAccess, NodePlan, PlanFile

# Starts the given ranks as msrun does: each wrapped, each in a session of its own; fails when one fails.
LAUNCHER = """
import os, subprocess, sys, time
ranks = [int(rank) for rank in sys.argv[1].split(",")]
def start(role, rank):
    env = dict(os.environ, RANK_ID=str(rank), MS_ROLE=role)
    name = "scheduler.log" if role == "MS_SCHED" else f"worker_{rank}.log"
    log = open(os.path.join(os.environ["OSTRAIN_LOG_DIR"], name), "wb")
    argv = [sys.executable, os.environ["OSTRAIN_AGENT"], "worker", "--", sys.executable, "worker.py"]
    return subprocess.Popen(argv, env=env, stdout=log, stderr=log, preexec_fn=os.setsid)
workers = [start("MS_WORKER", rank) for rank in ranks]
print("launched", flush=True)
codes = [worker.wait() for worker in workers]
sys.exit(1 if any(codes) else 0)
"""

SLEEPER = "import time\nprint('ready', flush=True)\ntime.sleep(300)\n"


def wait_until(check: Callable[[], Any], bound: float = 15.0, what: str = "") -> Any:
    """Poll until ``check`` gives something true; AssertionError when the bound is over."""
    deadline = time.monotonic() + bound
    while True:
        value = check()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {bound} s: {what or check}"
        time.sleep(0.05)


def node_plan(
    name: str,
    access: NodeAccess,
    worker: str = SLEEPER,
    ranks: Sequence[int] = (0,),
    node_rank: int = 0,
    launch: str = 'exec "$PYTHON" launcher.py',
    address: str = "127.0.0.1",
    files: Sequence[PlanFile] = (),
) -> NodePlan:
    """A node whose launcher starts ``worker`` (Python source) for every rank."""
    script = f'#!/bin/bash\nPYTHON=python\n{launch} "{",".join(map(str, ranks))}"\n'
    own = (PlanFile("launch.sh", script, 0o755), PlanFile("launcher.py", LAUNCHER), PlanFile("worker.py", worker))
    return NodePlan(name, node_rank, access, address, tuple(ranks), tuple(ranks), ("bash", "launch.sh"), (*own, *files))


def make_plan(backend: str, nodes: Sequence[NodePlan], **changes: Any) -> LaunchPlan:
    world = sum(len(node.ranks) for node in nodes)
    plan = LaunchPlan("toy", backend, "msrun", "cpu", {}, world, nodes[0].address, 0, 10, tuple(nodes))
    return replace(plan, **changes)


def toy_bundle(folder: Path) -> Path:
    """A small code bundle: the agent and an empty ``models``."""
    package = folder / "models"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").write_text("")
    path = folder / "bundle.tar.gz"
    with open(path, "wb") as file:
        pack([("models", package), ("agent.py", AGENT)], file)
    return path


def good(answers: PerNode[Any]) -> dict[str, Any]:
    """The answers, when no node failed."""
    for answer in answers.values():
        if isinstance(answer, NodeError):
            raise AssertionError(str(answer)) from answer
    return dict(answers)


def launch(backend: Backend, run: RunRef, bundle: Path, attempt: int = 1, **secrets: str) -> None:
    good(backend.stage(run, bundle))
    good(backend.start(run, attempt, secrets))


def wait_state(backend: Backend, run: RunRef, state: str, bound: float = 20.0) -> dict[str, Any]:
    """Status of the (first) node once every node is in ``state``."""

    def reached() -> dict[str, Any] | None:
        answers = good(backend.poll(run))
        return answers if all(answer["state"] == state for answer in answers.values()) else None

    answers = wait_until(reached, bound, f"state {state}")
    first: dict[str, Any] = next(iter(answers.values()))
    return first


def wait_ready(backend: Backend, run: RunRef, bound: float = 20.0) -> dict[str, Any]:
    """Status of the first node once all its workers have printed something."""

    def ready() -> dict[str, Any] | None:
        answers = good(backend.poll(run))
        for node in run.plan.nodes:
            running = [w for w in answers[node.name]["workers"] if w["state"] == "running"]
            if len(running) != len(node.ranks):
                return None
            for rank in node.ranks:
                path = f"logs/attempt-{answers[node.name]['attempt']}/worker_{rank}.log"
                if b"ready" not in backend.fetch(run, node.name, path):
                    return None
        return answers

    answers = wait_until(ready, bound, "workers ready")
    first: dict[str, Any] = next(iter(answers.values()))
    return first

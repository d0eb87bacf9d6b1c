"""A backend that runs nothing and writes the metrics a test wants; small benchmark files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.backend import NodeError, NodeNews, RunRef
from ostrain.bench.load import Bench, load_bench
from ostrain.bench.session import Session
from ostrain.plan import LaunchPlan
from ostrain.store import Store

JOB = """job:
  devices_per_node: 2
  train:
    recipe: quickstart
    data: {annotations: /data/train.csv, videos: /data, text_embeddings: /data/text}
"""
HEAD = "name: trial\nsteps: 6\nwarmup: 2\n"
MATRIX = """matrix:
  - {label: one, devices_per_node: 1}
  - {label: two}
"""


def write_bench(folder: Path, *, head: str = HEAD, job: str = JOB, matrix: str = MATRIX) -> Path:
    path = folder / "trial.yaml"
    path.write_text(head + job + matrix, encoding="utf-8")
    return path


def record(step: int, seconds: float = 0.5, **more: Any) -> dict[str, Any]:
    """A line of metrics as the payload writes it: 100 tokens a step."""
    told = {"step": step, "attempt": 1, "loss": 1.0, "seconds": seconds, "data_wait": 0.01, "samples": 4,
            "tokens_per_s": 100 / seconds, "memory": 1000, "shape": "4x8x8"}  # fmt: skip
    return {**told, **more}


Records = Callable[[LaunchPlan, int], list[dict[str, Any]]]


class FakeBackend:
    """Every run succeeds at once with the metrics that ``metrics(plan, rank)`` gives.

    fail: names of jobs that fail; hang: names of jobs whose follow calls ``on_hang`` and ends when they are stopped.
    """

    name = "fake"

    def __init__(self, metrics: Records, *, fail: tuple[str, ...] = (), hang: tuple[str, ...] = ()) -> None:
        self.metrics, self.fail, self.hang = metrics, fail, hang
        self.events: list[dict[str, Any]] = []
        self.on_hang: Callable[[], None] = lambda: None
        self.started: list[str] = []
        self.stopped: set[str] = set()
        self.removed: list[str] = []

    def _status(self, run: RunRef, node: str) -> dict[str, Any]:
        state = "SUCCEEDED"
        if run.plan.name in self.hang:
            state = "CANCELLED" if run.run_id in self.stopped else "RUNNING"
        fault = None
        if run.plan.name in self.fail:
            state = "FAILED"
            fault = {"rank": 0, "reason": "worker_failed", "time": time.time(), "exit_code": 1, "signal": None,
                     "log": "", "tail": [], "message": {"what": "it broke"}}  # fmt: skip
        reason = {"SUCCEEDED": "done", "FAILED": "worker_failed"}.get(state, "cancelled")
        return {"node": node, "time": time.time(), "attempt": 1, "state": state, "reason": reason, "fault": fault,
                "agent": {"alive": False, "pid": 1}, "workers": [], "progress": None, "checkpoints": [],
                "heartbeat": {}}  # fmt: skip

    def probe(self, plan: LaunchPlan, *, timeout: float = 30.0) -> dict[str, Any]:
        return {node.name: {} for node in plan.nodes}

    def stage(self, run: RunRef, bundle: Path, *, timeout: float = 600.0) -> dict[str, Any]:
        return {node.name: None for node in run.plan.nodes}

    def start(self, run: RunRef, attempt: int, secrets: Mapping[str, str], *, timeout: float = 60.0) -> dict[str, Any]:
        self.started.append(run.plan.name)
        return {node.name: None for node in run.plan.nodes}

    def poll(self, run: RunRef, *, timeout: float = 15.0) -> dict[str, Any]:
        return {node.name: self._status(run, node.name) for node in run.plan.nodes}

    def follow(self, run: RunRef, cursors: Any, patterns: Any, *, until_final: bool = True) -> Iterator[NodeNews]:
        if run.plan.name in self.hang:
            self.on_hang()
            end = time.monotonic() + 10
            while run.run_id not in self.stopped and time.monotonic() < end:
                time.sleep(0.01)
        for node in run.plan.nodes:
            yield NodeNews(node.name, self._status(run, node.name))

    def fetch(self, run: RunRef, node: str, path: str, *, limit: int = 64 << 20) -> bytes:
        if path == "events.jsonl":
            return "".join(json.dumps(event) + "\n" for event in self.events).encode()
        rank = int(path.removeprefix("metrics/rank-").removesuffix(".jsonl"))
        if rank not in run.plan.node(node).ranks:
            raise NodeError("no_run", f"{path} is not on {node}", node=node)
        return "".join(json.dumps(line) + "\n" for line in self.metrics(run.plan, rank)).encode()

    def stop(self, run: RunRef, *, grace: float = 10.0, reason: str = "cancelled") -> dict[str, Any]:
        self.stopped.add(run.run_id)
        return {node.name: {"killed": [], "survivors": [], "state": "CANCELLED"} for node in run.plan.nodes}

    def remove(self, run: RunRef, *, timeout: float = 60.0) -> dict[str, Any]:
        self.removed.append(run.plan.name)
        return {node.name: None for node in run.plan.nodes}

    def close(self) -> None:
        return None


class Silent:
    """Progress that shows nothing."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, news: object) -> None:
        return None


def session(
    folder: Path, backend: FakeBackend, *, bench: Bench | None = None, code: str = "c0de", keep: bool = False
) -> tuple[Session, list[str]]:
    """A session over the fake backend in ``folder``, and what it says."""

    @contextmanager
    def opened(_: LaunchPlan) -> Iterator[Any]:
        yield backend

    said: list[str] = []
    bundle = folder / "bundle-0.tar.gz"
    made = Session(
        bench or load_bench(write_bench(folder)),
        Store(folder / "runs.db"),
        folder / "out",
        bundle,
        code,
        opened,
        lambda _: {},
        lambda _: Silent(),
        said.append,
        keep,
    )
    return made, said

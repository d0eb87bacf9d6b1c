"""Runs for tests of what watches and reports them: rows of the store, metrics, status objects; no process behind."""

from __future__ import annotations

import json
import math
from typing import Any

from cluster.backend import Chunk, NodeNews
from ostrain.plan import LaunchPlan, NodeAccess, NodePlan
from ostrain.states import State
from ostrain.store import Run


def make_run(nodes: int = 2, ranks: int = 2, *, name: str = "job-abc", **changes: Any) -> Run:
    plans = tuple(
        NodePlan(f"node-{n}", n, NodeAccess("h"), "h", tuple(range(n * ranks, (n + 1) * ranks)), (0,), ("true",), ())
        for n in range(nodes)
    )
    plan = LaunchPlan("job", "ssh", "msrun", "CPU", {}, nodes * ranks, "h", 0, 100, plans)
    facts: dict[str, Any] = {
        "run_id": name, "name": "job", "job_path": "job.yaml", "created": 1000.0, "backend": "ssh", "bundle": "",
        "plan_json": plan.to_json(), "attempt": 1, "state": State.RUNNING, "reason": "running", "settled": False,
        "owner": "", "updated": 1000.0,
    }  # fmt: skip
    return Run(**{**facts, **changes})


def metrics(step: int, *, attempt: int = 1, seconds: float = 0.5, **more: Any) -> dict[str, Any]:
    return {
        "step": step, "steps": 100, "attempt": attempt, "time": 1000.0 + step, "loss": 1.0 + math.exp(-step / 20),
        "grad_norm": 0.5, "lr": 1e-4, "seconds": seconds, "data_wait": 0.05, "memory": 3 << 30, **more,
    }  # fmt: skip


def chunk(node: str, path: str, records: list[dict[str, Any]], offset: int = 0) -> Chunk:
    text = "".join(json.dumps(record) + "\n" for record in records)
    return Chunk(node, path, offset, offset + len(text.encode()), text)


def news(node: str, ranks: list[int], step: int, *, attempt: int = 1, state: str = "RUNNING") -> NodeNews:
    workers = [{"rank": rank, "pid": 1, "state": "running", "exit_code": None, "signal": None} for rank in ranks]
    beats = {str(rank): {"step": step, "time": 1000.0 + step, "phase": "step"} for rank in ranks}
    status = {
        "node": node, "time": 1000.0 + step, "attempt": attempt, "state": state, "reason": "running", "fault": None,
        "agent": {"alive": True, "pid": 1}, "workers": workers, "progress": None, "checkpoints": [10],
        "heartbeat": beats,
    }  # fmt: skip
    return NodeNews(node, status)

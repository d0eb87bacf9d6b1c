"""Evidence made by hand, as agents would bring it."""

from __future__ import annotations

import json
import time
from typing import Any

from cluster.backend import RunRef
from ostrain.plan import NodeAccess
from ostrain.why.evidence import Clock, Evidence, LogText
from tests.cluster.toys import make_plan, node_plan

T0 = 1_763_800_000.0  # a time on the submitter's clock


class Site:
    """A run of several nodes whose clocks are ``offsets`` seconds ahead, in a zone ``utc_offset`` ahead of UTC."""

    def __init__(self, *offsets: float, ranks: int = 1, utc_offset: float = 8 * 3600.0, doubt: float = 0.02) -> None:
        nodes = [
            node_plan(f"node-{n}", NodeAccess("127.0.0.1"), ranks=tuple(range(n * ranks, (n + 1) * ranks)))
            for n in range(len(offsets))
        ]
        self.evidence = Evidence(RunRef("run-1", make_plan("ssh", nodes)), 1)
        self.offsets = {f"node-{n}": offset for n, offset in enumerate(offsets)}
        self.zone = utc_offset
        self.ranks = ranks
        for name, offset in self.offsets.items():
            self.evidence.clocks[name] = Clock(offset, doubt, utc_offset)

    def node(self, rank: int) -> str:
        return f"node-{rank // self.ranks}"

    def local(self, node: str, after: float) -> float:
        """What the node's clock shows ``after`` seconds after T0."""
        return T0 + after + self.offsets[node]

    def _put(self, node: str, path: str, text: str) -> None:
        files = self.evidence.files.setdefault(node, {})
        files[path] = LogText(files[path].text + text if path in files else text)

    def log(self, rank: int, *lines: str) -> None:
        self._put(self.node(rank), f"logs/attempt-1/worker_{rank}.log", "".join(line + "\n" for line in lines))

    def scheduler(self, *lines: str) -> None:
        self._put("node-0", "logs/attempt-1/scheduler.log", "".join(line + "\n" for line in lines))

    def ours(self, rank: int, after: float, text: str, level: str = "INFO") -> str:
        """A line of the payload."""
        moment = self.local(self.node(rank), after)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + f".{int(moment * 1000) % 1000:03d}Z"
        return f"{stamp} {level} {text}"

    def glog(self, node: str, after: float, text: str, level: str = "ERROR", module: str = "HCCL") -> str:
        """A line of MindSpore or CANN, in the node's own zone."""
        moment = self.local(node, after) + self.zone
        stamp = time.strftime("%Y-%m-%d-%H:%M:%S", time.gmtime(moment)) + f".{int(moment * 1000) % 1000:03d}.123"
        return f"[{level}] {module}(77,python):{stamp} [hccl_socket.cc:816] [77]{text}"

    def end(self, rank: int, after: float, *, signal: str | None = None, code: int | None = None) -> None:
        node = self.node(rank)
        record: dict[str, Any] = {"rank": rank, "pid": 1000 + rank, "wrapper_pid": 1, "role": "worker"}
        record.update(started=self.local(node, -60), ended=self.local(node, after), signal=signal, exit_code=code)
        self._put(node, f"workers/attempt-1/rank-{rank}.json", json.dumps(record))

    def fault(self, rank: int, after: float, what: str) -> None:
        node = self.node(rank)
        record = {"kind": "worker_failed", "what": what, "where": "", "why": "", "time": self.local(node, after)}
        self._put(node, f"faults/attempt-1/rank-{rank}.json", json.dumps(record))

    def event(self, node: str, after: float, event: str, **more: Any) -> None:
        record = {"time": self.local(node, after), "node": node, "attempt": 1, "event": event, **more}
        self._put(node, "events.jsonl", json.dumps(record) + "\n")

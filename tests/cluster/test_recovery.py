"""What a recovery asks of nodes: fences, copies in portions, devices that are free."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import recovery
from cluster.backend import NodeError, RunRef
from cluster.recovery import NodeRecovery, device_holders
from ostrain.plan import NodeAccess
from tests.cluster.conftest import LocalSite
from tests.cluster.toys import good, make_plan, node_plan, wait_ready, wait_state

TABLE = """
| 0     910B3               | OK            | 93.5        36                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          3315 / 65536         |
+===========================+===============+====================================================+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| No running processes found in NPU 0                                                            |
+===========================+===============+====================================================+
| 5       0                 | 2290156       | VLLMEngineCore           | 56630                   |
| 6       0                 | 77            |                          | 56630                   |
+===========================+===============+====================================================+
"""


def test_who_holds_a_device() -> None:
    assert device_holders(TABLE, [0, 1]) == []
    assert device_holders(TABLE, [5, 6]) == ["device 5: pid 2290156 (VLLMEngineCore)", "device 6: pid 77"]
    assert device_holders("", [0]) == [] == device_holders("npu-smi: command failed", [0])


def test_a_fence_ends_what_runs_and_refuses_earlier_attempts(site: LocalSite) -> None:
    run = site.start()
    status = wait_ready(site.backend, run)
    node = run.plan.nodes[0]
    report = good(NodeRecovery(site.backend).fence(run, [node], 3, timeout=20.0))["node-0"]
    assert status["workers"][0]["pid"] in [one["pid"] for one in report["killed"]] and not report["survivors"]
    assert wait_state(site.backend, run, "FAILED")["reason"] == "superseded"
    refused = site.backend.start(run, 2, {})["node-0"]
    assert isinstance(refused, NodeError) and refused.kind == "fenced"
    good(site.backend.start(run, 3, {}))
    again = good(NodeRecovery(site.backend).fence(run, [node], 2, timeout=20.0))["node-0"]
    assert (again["killed"], again["state"]) == ([], "RUNNING"), "a lower fence changes nothing"


@pytest.fixture
def two(site: LocalSite) -> RunRef:
    """Two staged nodes on this machine."""
    access = NodeAccess("localhost", root=str(site.root), python=sys.executable)
    nodes = [node_plan(f"node-{number}", access, ranks=(number,), node_rank=number) for number in range(2)]
    run = RunRef("run-1", make_plan("local", nodes))
    site.runs.append(run)
    good(site.backend.stage(run, site.bundle()))
    return run


def at(site: LocalSite, number: int, path: str) -> Path:
    return site.root / "runs" / "run-1" / f"node-{number}" / path


def test_a_file_travels_in_portions_and_arrives_whole(
    site: LocalSite, two: RunRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "PORTION", 1000)
    data = bytes(range(256)) * 10
    source = at(site, 0, "checkpoints/step-4/a b.safetensors")
    source.parent.mkdir(parents=True)
    source.write_bytes(data)
    facts = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path = "checkpoints/step-4/a b.safetensors"
    target = at(site, 1, path)
    NodeRecovery(site.backend).copy(two, path, two.plan.nodes[0], two.plan.nodes[1], timeout=20.0, **facts)
    assert target.read_bytes() == data
    assert [one.name for one in target.parent.iterdir()] == [target.name]
    target.unlink()
    wrong = {**facts, "sha256": "0" * 64}
    with pytest.raises(NodeError, match="arrived damaged"):
        NodeRecovery(site.backend).copy(two, path, two.plan.nodes[0], two.plan.nodes[1], timeout=20.0, **wrong)
    with pytest.raises(NodeError, match="ends after"):
        longer = {**facts, "size": len(data) + 1}
        NodeRecovery(site.backend).copy(two, path, two.plan.nodes[0], two.plan.nodes[1], timeout=20.0, **longer)
    assert not target.exists(), "never half a file under its name"


def test_nothing_is_put_outside_the_run_directory(site: LocalSite, two: RunRef) -> None:
    client = site.backend.client(two.plan.nodes[0])
    head = json.dumps({"path": "../x", "offset": 0, "size": 1, "sha256": "0" * 64}).encode()
    with pytest.raises(NodeError, match="outside the run directory"):
        client.call("put", client.run_dir("run-1", 10.0), input=io.BytesIO(head + b"\nx"), timeout=10.0)


def test_nodes_without_npus_have_nobody_holding_them(site: LocalSite, two: RunRef) -> None:
    nodes = [replace(node, devices=(0,)) for node in two.plan.nodes]
    assert good(NodeRecovery(site.backend).holders(nodes, timeout=20.0)) == {"node-0": [], "node-1": []}

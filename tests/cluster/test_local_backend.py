"""The local backend: bytes, secrets, ports, start of several nodes."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from cluster import agent, backends
from cluster.backend import NodeError, RunRef
from cluster.local_backend import LocalBackend, local_root
from ostrain.errors import OstrainError
from ostrain.plan import NodeAccess
from tests.cluster.conftest import LocalSite, environ_tags
from tests.cluster.hostile import check_arrival
from tests.cluster.toys import SLEEPER, good, launch, make_plan, node_plan, wait_ready, wait_state


def test_hostile_values_arrive_byte_for_byte(site: LocalSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "ro ot'$(id)"
    access = NodeAccess("localhost", root=str(root), python=sys.executable)
    check_arrival(site.backend, "node-0", access, tmp_path, site.bundle())


def test_secrets_reach_the_worker_and_nothing_else(site: LocalSite) -> None:
    value = "s3cret-" + os.urandom(8).hex()
    worker = "import hashlib, os\nprint(hashlib.sha256(os.environ['HF_TOKEN'].encode()).hexdigest())\n" + SLEEPER
    run = site.run(worker)
    launch(site.backend, run, site.bundle(), HF_TOKEN=value)
    wait_ready(site.backend, run)
    for path in site.folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert value.encode() not in path.read_bytes(), path
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert value.encode() not in path.read_bytes()
        except OSError:
            continue
    import hashlib

    log = site.backend.fetch(run, "node-0", "logs/attempt-1/worker_0.log").decode()
    assert log.startswith(hashlib.sha256(value.encode()).hexdigest())
    good(site.backend.stop(run, grace=1.0))
    left = [path for path in site.folder.rglob("*") if path.is_file() and value.encode() in path.read_bytes()]
    assert left == []


def test_a_run_started_inside_another_does_not_carry_its_tag(site: LocalSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSTRAIN_RUN", "outer")
    monkeypatch.setenv("OSTRAIN_SECRET_X", "hidden")
    before = environ_tags("OSTRAIN_RUN=outer")
    run = site.start("import os; print('OSTRAIN_SECRET_X' in os.environ)\n" + SLEEPER)
    wait_ready(site.backend, run)
    assert environ_tags("OSTRAIN_RUN=outer") == before
    assert site.backend.fetch(run, "node-0", "logs/attempt-1/worker_0.log").startswith(b"False")


def test_two_nodes_on_one_machine(tmp_path: Path, site: LocalSite) -> None:
    access = NodeAccess("localhost", root=str(site.root))
    nodes = [node_plan(f"node-{n}", access, ranks=(n,), node_rank=n) for n in range(2)]
    run = RunRef("run-1", make_plan("local", nodes))
    site.runs.append(run)
    launch(site.backend, run, site.bundle())
    wait_ready(site.backend, run)
    report = good(site.backend.stop(run, grace=1.0))
    for number in range(2):
        killed = report[f"node-{number}"]["killed"]
        assert {entry["rank"] for entry in killed} - {None} == {number}


def test_no_half_started_run(site: LocalSite) -> None:
    good_access = NodeAccess("localhost", root=str(site.root))
    nodes = [node_plan("node-0", good_access), node_plan("node-1", good_access, ranks=(1,), node_rank=1)]
    run = RunRef("run-1", make_plan("local", nodes))
    site.runs.append(run)
    good(site.backend.stage(run, site.bundle()))
    (site.root / "runs/run-1/node-1/agent/staged.json").unlink()
    (site.root / "runs/run-1/node-1").rename(site.root / "runs/run-1/gone")
    answers = site.backend.start(run, 1, {})
    assert isinstance(answers["node-1"], NodeError) and answers["node-1"].kind == "no_run"
    status = site.backend.poll(run)["node-0"]
    assert not isinstance(status, NodeError)
    assert (status["state"], status["reason"]) == ("FAILED", "start_failed")
    assert not environ_tags("OSTRAIN_RUN=run-1")


def test_the_same_port_on_every_node(site: LocalSite) -> None:
    access = NodeAccess("localhost", root=str(site.root))
    worker = "import os; print(os.environ['OSTRAIN_MASTER_PORT'], flush=True)"
    nodes = [node_plan(f"node-{n}", access, worker, ranks=(n,), node_rank=n) for n in range(2)]
    run = RunRef("run-1", make_plan("local", nodes))
    site.runs.append(run)
    launch(site.backend, run, site.bundle())
    wait_state(site.backend, run, "SUCCEEDED")
    ports = {site.backend.fetch(run, f"node-{n}", f"logs/attempt-1/worker_{n}.log") for n in range(2)}
    assert len(ports) == 1 and 20000 <= int(ports.pop()) < 32000


def test_status_of_a_local_run_is_quick(site: LocalSite) -> None:
    run = site.start(ranks=(0, 1, 2, 3))
    wait_ready(site.backend, run)
    backend = LocalBackend()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        good(backend.poll(run))
        times.append(time.perf_counter() - began)
    assert min(times) < 0.05


def test_local_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert local_root(NodeAccess("localhost")) == "/state/ostrain"
    assert local_root(NodeAccess("localhost", root="/elsewhere")) == "/elsewhere"


def test_backends_by_name() -> None:
    assert backends.get("local").name == "local"
    with pytest.raises(OstrainError, match="no backend 'k8s'"):
        backends.get("k8s")


# --- probe -----------------------------------------------------------------------------------------------------------


def test_probe_of_a_good_node(site: LocalSite) -> None:
    run = site.run(plan={"checks": {"modules": ["json"], "programs": ["bash"], "min_free_bytes": 1}})
    answer = good(site.backend.probe(run.plan))["node-0"]
    assert answer["problems"] == [] and answer["modules"] == {"json": ""} and answer["programs"]["bash"]
    assert answer["uid"] == os.getuid() and answer["hostname"] == socket.gethostname()
    assert abs(answer["time"] - time.time()) < 10 and answer["boot_id"] == agent.boot_id()
    assert not (site.root / "runs").exists()


@pytest.mark.parametrize(
    "checks, kind, word",
    [
        ({"modules": ["no_such_module"]}, "module_missing", "no_such_module"),
        ({"programs": ["no-such-program"]}, "program_missing", "no-such-program"),
        ({"min_free_bytes": 1 << 60}, "disk_full", "too little space"),
        ({"device": "Ascend"}, "devices_missing", "device 0"),
    ],
)
def test_a_failed_check_has_its_kind(site: LocalSite, checks: dict[str, object], kind: str, word: str) -> None:
    answer = site.backend.probe(site.run(plan={"checks": checks}).plan)["node-0"]
    assert isinstance(answer, NodeError)
    assert (answer.kind, answer.exit_code) == (kind, 3)
    assert word in answer.what and answer.next_step


def test_every_failed_check_is_told(site: LocalSite) -> None:
    checks = {"modules": ["no_such_module"], "programs": ["no-such-program"]}
    answer = site.backend.probe(site.run(plan={"checks": checks}).plan)["node-0"]
    assert isinstance(answer, NodeError)
    assert "no_such_module" in answer.what and "no-such-program" in answer.what


def test_a_taken_port_is_found(site: LocalSite) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        answer = site.backend.probe(site.run(plan={"master_port": port}).plan)["node-0"]
    assert isinstance(answer, NodeError) and answer.kind == "port_taken" and str(port) in answer.what
    assert good(site.backend.probe(site.run(plan={"master_port": port}).plan))["node-0"]["port"] == port


def test_an_agent_file_that_vanished_is_sent_again(site: LocalSite) -> None:
    run = site.run()
    good(site.backend.probe(run.plan))
    for path in (site.root / "bin").iterdir():
        path.unlink()
    assert good(site.backend.probe(run.plan))

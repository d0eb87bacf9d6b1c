"""Faults on purpose: only on processes of the named run, and undone by themselves whatever happens."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import fault_agent
from cluster.backend import NodeError
from cluster.injector import CannotInject, NodeInjector
from ostrain.plan import NodePlan
from tests.cluster.conftest import LocalSite
from tests.cluster.toys import good, wait_ready, wait_until

COUNTING = """
import time, os
print('ready', flush=True)
path = os.path.join(os.environ['OSTRAIN_RUN_DIR'], 'count')
for number in range(100000):
    with open(path, 'w') as file:
        file.write(str(number))
    time.sleep(0.01)
"""


@pytest.fixture
def run(site: LocalSite) -> Iterator[tuple[str, NodePlan, int]]:
    """A run of one counting worker: run id, node, the worker's pid."""
    made = site.start(COUNTING)
    status = wait_ready(site.backend, made)
    yield made.run_id, made.plan.nodes[0], status["workers"][0]["pid"]


@pytest.fixture
def injector(site: LocalSite) -> Iterator[NodeInjector]:
    made = NodeInjector(site.backend, longest=60.0)
    yield made
    assert made.mend() == []


def count(site: LocalSite) -> int:
    text = next((site.root / "runs").glob("*/node-0/count")).read_text()
    return int(text or -1)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_look_finds_the_run_and_kill_ends_one_process(
    site: LocalSite, run: tuple[str, NodePlan, int], injector: NodeInjector
) -> None:
    name, node, pid = run
    seen = injector.look(node, name)
    assert pid in [one["pid"] for one in seen["processes"]] and seen["free"] > 0
    agent = next(iter(good(site.backend.poll(site.runs[0])).values()))["agent"]
    assert agent["pid"] in [one["pid"] for one in seen["processes"]], "the agent is one of them"
    assert os.getpid() not in [one["pid"] for one in seen["processes"]]
    assert time.time() - injector.kill(node, name, [pid]) < 5
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or state(pid) == "Z")


def test_other_processes_are_never_touched(run: tuple[str, NodePlan, int], injector: NodeInjector) -> None:
    name, node, pid = run
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as bystander:
        for pids, run_id in (([bystander.pid], name), ([pid], "another-run"), ([bystander.pid, pid], name)):
            with pytest.raises(NodeError, match="could not be made"):
                injector.kill(node, run_id, pids)
            with pytest.raises(NodeError, match="could not be made"):
                injector.hold(node, run_id, "stop", 5.0, pids=pids)
        assert state(bystander.pid) == "S"
        assert state(pid) in "SR"
        bystander.kill()


def test_a_stopped_worker_goes_on_when_it_is_mended(
    site: LocalSite, run: tuple[str, NodePlan, int], injector: NodeInjector
) -> None:
    name, node, pid = run
    injector.hold(node, name, "stop", 30.0, pids=[pid])
    wait_until(lambda: state(pid) == "T")
    before = count(site)
    time.sleep(0.2)
    assert count(site) == before
    assert injector.mend() == []
    wait_until(lambda: count(site) > before)


def test_what_lasts_ends_by_itself(site: LocalSite, run: tuple[str, NodePlan, int], injector: NodeInjector) -> None:
    name, node, pid = run
    injector.hold(node, name, "stop", 1.0, pids=[pid])
    assert state(pid) == "T"
    wait_until(lambda: state(pid) != "T", 5.0)


def test_a_slowed_worker_runs_a_part_of_the_time(
    site: LocalSite, run: tuple[str, NodePlan, int], injector: NodeInjector
) -> None:
    name, node, pid = run
    injector.hold(node, name, "slow", 30.0, pids=[pid], off=0.15, on=0.05)
    states = set()
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        states.add(state(pid) == "T")
        time.sleep(0.02)
    assert states == {True, False}


def test_a_port_is_taken_as_soon_as_it_is_free(run: tuple[str, NodePlan, int], injector: NodeInjector) -> None:
    name, node, _ = run
    with socket.socket() as owner:
        owner.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        owner.bind(("127.0.0.1", 0))
        owner.listen(1)
        port = owner.getsockname()[1]
        injector.hold(node, name, "port", 30.0, address="127.0.0.1", port=port)
    wait_until(lambda: listens(port))
    injector.mend()
    assert not listens(port)


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], check=True, timeout=10)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=10)


def hold_full(folder: Path, seconds: float) -> dict[str, object]:
    return fault_agent.verb_hold({"effect": "fill", "root": str(folder), "seconds": seconds, "run": "x"})


@pytest.mark.nodes
@pytest.mark.parametrize("how", ["mended", "killed"])
def test_a_full_disk_is_free_again(small_disk: Path, how: str) -> None:
    answer = hold_full(small_disk, 30.0)
    with pytest.raises(OSError, match="No space"):
        (small_disk / "file").write_bytes(bytes(8192))
    assert fault_agent.free_bytes(str(small_disk)) < 4096
    if how == "mended":
        fault_agent.verb_mend(answer)
    else:  # no mending at all: the kernel sees to it
        os.kill(int(str(answer["pid"])), signal.SIGKILL)
    wait_until(lambda: fault_agent.free_bytes(str(small_disk)) > 7 << 20)


def test_a_large_disk_is_not_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault_agent, "LARGEST_FILL", 1)
    assert "too much to fill" in str(hold_full(tmp_path, 1.0)["error"])
    assert list(tmp_path.iterdir()) == []


def test_what_needs_power_over_a_node_is_told(run: tuple[str, NodePlan, int], injector: NodeInjector) -> None:
    name, node, _ = run
    for act in (
        lambda: injector.power_off(node, name),
        lambda: injector.cut_link(node, name, 1.0),
        lambda: injector.cut_sessions(node, name, 1.0),
    ):
        with pytest.raises(CannotInject) as caught:
            act()
        assert caught.value.why and "node-0" in caught.value.where


def test_a_link_is_cut_only_by_who_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault_agent, "interface_to", lambda address: "eth9")
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(fault_agent.Refused, match="sudo"):
        next(fault_agent.link_cut({"toward": "192.0.2.1"}))


def test_its_own_machine_is_no_way_to_a_link() -> None:
    with pytest.raises(fault_agent.Refused, match="no interface"):
        fault_agent.interface_to("127.0.0.1")
    with pytest.raises(fault_agent.Refused, match="nobody knows"):
        fault_agent.interface_to("")


def test_it_needs_nothing_but_python() -> None:
    from tests.test_architecture import ROOT, imports

    names = {name.split(".")[0] for name in imports(ROOT / "cluster" / "fault_agent.py")}
    assert not names - set(sys.stdlib_module_names)

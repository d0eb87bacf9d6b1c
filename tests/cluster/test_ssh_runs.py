"""Runs on real nodes: three of them, over SSH, with cables pulled and machines switched off."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import backends, follow
from cluster.backend import Backend, Chunk, FollowLost, NodeError, RunRef
from ostrain.plan import NodeAccess
from tests.cluster.hostile import check_arrival
from tests.cluster.toys import (
    SLEEPER,
    good,
    launch,
    make_plan,
    node_plan,
    toy_bundle,
    wait_ready,
    wait_state,
    wait_until,
)
from tests.testbed import Testbed

pytestmark = pytest.mark.nodes

COUNTER = (
    "import itertools, time\n"
    "print('ready', flush=True)\n"
    "for n in itertools.count():\n"
    "    print('line', n, flush=True)\n"
    "    time.sleep(0.05)\n"
)


@pytest.fixture
def backend(bed: Testbed) -> Iterator[Backend]:
    opened = backends.get("ssh")
    yield opened
    opened.close()


def run_on(bed: Testbed, name: str, worker: str = SLEEPER, count: int = 3) -> RunRef:
    nodes = [
        node_plan(node.name, NodeAccess(node.name, python=sys.executable), worker, (i,), i, address=node.address)
        for i, node in enumerate(bed.nodes[:count])
    ]
    return RunRef(name, make_plan("ssh", nodes))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return toy_bundle(tmp_path)


def test_three_nodes_succeed(bed: Testbed, backend: Backend, bundle: Path) -> None:
    run = run_on(bed, "ends", "import os; print(os.uname().nodename, os.environ['OSTRAIN_MASTER_PORT'])")
    good(backend.probe(run.plan))
    launch(backend, run, bundle)
    wait_state(backend, run, "SUCCEEDED")
    texts = [backend.fetch(run, f"node-{n}", f"logs/attempt-1/worker_{n}.log").split() for n in range(3)]
    assert [text[0] for text in texts] == [b"node-0", b"node-1", b"node-2"]
    assert len({text[1] for text in texts}) == 1
    good(backend.remove(run))


def test_one_worker_killed_and_one_of_two_runs_cancelled(bed: Testbed, backend: Backend, bundle: Path) -> None:
    one, other = run_on(bed, "one"), run_on(bed, "one-more")
    for run in (one, other):
        launch(backend, run, bundle)
    wait_ready(backend, one)
    wait_ready(backend, other)
    before = [node.processes("OSTRAIN_RUN=one-more") for node in bed.nodes]
    victim = good(backend.poll(one))["node-1"]["workers"][0]["pid"]
    bed.nodes[1].kill(victim)
    fault = wait_until(lambda: good(backend.poll(one))["node-1"]["fault"], 5)
    assert (fault["rank"], fault["signal"], fault["reason"]) == (1, "SIGKILL", "worker_killed")
    report = good(backend.stop(one, grace=1.0))
    assert all(not answer["survivors"] for answer in report.values())
    assert [node.processes("OSTRAIN_RUN=one") for node in bed.nodes] == [{}, {}, {}]
    assert [node.processes("OSTRAIN_RUN=one-more") for node in bed.nodes] == before
    good(backend.stop(other, grace=1.0))
    for run in (one, other):
        good(backend.remove(run))


def test_hostile_values_arrive_byte_for_byte(bed: Testbed, backend: Backend, bundle: Path, tmp_path: Path) -> None:
    access = NodeAccess("node-0", python=sys.executable, root="~/ro ot'$(id)")
    check_arrival(backend, "node-0", access, tmp_path, bundle)


def test_one_dead_node_does_not_hide_the_others(bed: Testbed, backend: Backend, bundle: Path) -> None:
    run = run_on(bed, "half")
    good(backend.stage(run, bundle))
    bed.nodes[2].stop_sshd()
    try:
        fresh = backends.get("ssh")
        answers = fresh.start(run, 1, {})
        fresh.close()
        dead = answers["node-2"]
        assert isinstance(dead, NodeError) and dead.kind == "unreachable"
        assert good({name: answers[name] for name in ("node-0", "node-1")})
        assert [node.processes("OSTRAIN_RUN=half") for node in bed.nodes] == [{}, {}, {}], "no half-started run"
    finally:
        bed.nodes[2].start_sshd()
    good(backend.remove(run))


def test_pulled_cable_loses_and_doubles_nothing(
    bed: Testbed, backend: Backend, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "SILENCE", 3.0)
    run = run_on(bed, "cable", COUNTER, count=2)
    launch(backend, run, bundle)
    texts = {"node-0": "", "node-1": ""}
    lost: list[str] = []

    def cable() -> None:
        wait_until(lambda: all(texts.values()), 20)
        bed.nodes[1].link_down()
        wait_until(lambda: lost, 20)
        bed.nodes[1].link_up()

    helper = threading.Thread(target=cable)
    helper.start()
    size_at_loss = 0
    for item in backend.follow(run, {}, ("logs/attempt-1/worker_*.log",)):
        if isinstance(item, FollowLost):
            assert item.node == "node-1" and not item.final
            size_at_loss = size_at_loss or len(texts["node-1"])
            lost.append(item.error.kind)
        elif isinstance(item, Chunk):
            assert item.offset == len(texts[item.node]), "a gap or a repetition"
            texts[item.node] += item.text
        if lost and len(texts["node-1"]) > size_at_loss + 200:
            break
    helper.join(20)
    good(backend.stop(run, grace=1.0))
    for text in texts.values():
        lines = text.splitlines()[1:-1]
        assert lines == [f"line {number}" for number in range(len(lines))]
    good(backend.remove(run))


def test_cut_connections_and_new_clients_give_every_line_once(bed: Testbed, backend: Backend, bundle: Path) -> None:
    worker = "import time\nfor n in range(100):\n    print('line', n, flush=True)\n    time.sleep(0.04)\n"
    run = run_on(bed, "cut", worker, count=2)
    launch(backend, run, bundle)
    texts = {"node-0": "", "node-1": ""}
    cursors: dict[str, dict[str, int]] = {"node-0": {}, "node-1": {}}
    rounds = 0
    while not all("line 99\n" in text for text in texts.values()):
        client = backends.get("ssh")
        began = time.monotonic()
        for item in client.follow(run, cursors, ("logs/attempt-1/worker_*.log",)):
            if isinstance(item, Chunk):
                texts[item.node] += item.text
                cursors[item.node][item.path] = item.end
            if time.monotonic() - began > 0.8 and rounds < 4:
                break
        client.close()
        rounds += 1
    for text in texts.values():
        assert text == "".join(f"line {number}\n" for number in range(100))
    wait_state(backend, run, "SUCCEEDED")
    good(backend.remove(run))


def test_a_node_that_was_switched_off(bed: Testbed, backend: Backend, bundle: Path) -> None:
    run = run_on(bed, "power", count=1)
    launch(backend, run, bundle)
    wait_ready(backend, run)
    bed.nodes[0].reboot()
    backend.close()
    status = good(backend.poll(run))["node-0"]
    assert (status["state"], status["reason"]) == ("FAILED", "node_rebooted")
    assert json.dumps(status["fault"]["message"])
    launch(backend, run, bundle, attempt=2)
    assert wait_ready(backend, run)["attempt"] == 2
    good(backend.stop(run, grace=1.0))
    good(backend.remove(run))


def test_a_broken_connection_is_opened_again(bed: Testbed, backend: Backend, bundle: Path) -> None:
    run = run_on(bed, "again", count=1)
    launch(backend, run, bundle)
    wait_ready(backend, run)
    bed.nodes[0].stop_sshd()
    answer = backend.poll(run, timeout=3.0)["node-0"]
    assert isinstance(answer, NodeError) and answer.kind == "unreachable"
    bed.nodes[0].start_sshd()
    assert good(backend.poll(run))["node-0"]["state"] == "RUNNING", "the run does not depend on the connection"
    good(backend.stop(run, grace=1.0))
    good(backend.remove(run))


def test_secrets_are_on_no_disk_and_no_command_line(bed: Testbed, backend: Backend, bundle: Path) -> None:
    run = run_on(bed, "secret", count=1)
    launch(backend, run, bundle, HF_TOKEN="s3cret-value-of-the-test")
    wait_ready(backend, run)
    found = [path for path in bed.nodes[0].home.rglob("*") if path.is_file() and b"s3cret-value" in path.read_bytes()]
    assert found == []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert b"s3cret-value" not in path.read_bytes()
        except OSError:
            continue
    good(backend.stop(run, grace=1.0))
    good(backend.remove(run))

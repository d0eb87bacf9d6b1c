"""Faults on real nodes from a user's account: sessions of watchers are cut, links only by who may."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import backends
from cluster.backend import Backend, FollowLost, NodeNews
from cluster.injector import CannotInject, NodeInjector
from cluster.node_backend import NodeBackend
from tests.cluster.test_ssh_runs import run_on
from tests.cluster.toys import good, launch, toy_bundle, wait_ready, wait_until
from tests.testbed import Testbed

pytestmark = pytest.mark.nodes


@pytest.fixture
def backend(bed: Testbed) -> Iterator[Backend]:
    opened = backends.get("ssh")
    yield opened
    opened.close()


def test_only_sessions_that_watch_the_run_are_cut_and_the_run_goes_on(
    bed: Testbed, backend: Backend, tmp_path: Path
) -> None:
    run = run_on(bed, "cut", count=1)
    launch(backend, run, toy_bundle(tmp_path))
    wait_ready(backend, run)
    watching, own = backends.get("ssh"), backends.get("ssh")
    assert isinstance(own, NodeBackend)
    injector = NodeInjector(own)
    seen: list[object] = []

    def watch() -> None:
        for item in watching.follow(run, {}, ("logs/attempt-*/worker_*.log",)):
            seen.append(item)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        wait_until(lambda: any(isinstance(item, NodeNews) for item in seen))
        plan = run.plan.nodes[0]
        before = [one["pid"] for one in injector.look(plan, "cut")["processes"]]
        injector.cut_sessions(plan, "cut", 1.0)
        wait_until(lambda: any(isinstance(item, FollowLost) for item in seen))
        assert [one["pid"] for one in injector.look(plan, "cut")["processes"]] == before
        with pytest.raises(CannotInject, match="cannot be made") as caught:
            injector.cut_link(plan, "cut", 1.0)
        assert "ip link set dev eth0 up" in caught.value.why or "sudo" in caught.value.why
        agent = good(backend.poll(run))["node-0"]["agent"]
        injector.kill(plan, "cut", [agent["pid"]])
        wait_until(lambda: good(backend.poll(run))["node-0"]["reason"] == "agent_lost")
    finally:
        backend.stop(run, grace=0.0)
        for one in (watching, own):
            one.close()
        thread.join(5.0)
    good(backend.remove(run))

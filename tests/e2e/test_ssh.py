"""Three real nodes over SSH: training, logs across killed clients, faults, cancel of one of two runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import QUICKSTART, ROOT, SMALL, Cli, losses, step_of, worker_pid
from tests.testbed import Testbed

pytestmark = [pytest.mark.train, pytest.mark.nodes]


@pytest.fixture(scope="module")
def bed() -> Iterator[Testbed]:
    with Testbed(3) as made:
        yield made


@pytest.fixture
def remote(bed: Testbed, tmp_path: Path) -> Iterator[Cli]:
    """The command line at home on the testbed's client, with an inventory of its nodes."""
    (tmp_path / "bed.yaml").write_text(bed.inventory())
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    made = Cli({**os.environ, **bed.environment(), "PYTHONPATH": str(ROOT), "PATH": path}, tmp_path, pause=1.0)
    yield made
    made.stop_children()
    for row in json.loads(made("ps", "--all", "--json").stdout):
        made("cancel", row["run_id"])
        made("rm", "--yes", row["run_id"])
    assert [one for node in bed.nodes for one in everything(node)] == [], "a test left processes on the nodes"


def everything(node: Any) -> list[str]:
    """Commands of every process of any run on a node."""
    listing = node.exec(["ps", "-eo", "args"], as_root=True).stdout.decode()
    return [line for line in listing.splitlines() if "models.train" in line or "msrun" in line]


def cluster(remote: Cli, *settings: str) -> tuple[str, ...]:
    return (f"cluster={remote.folder}/bed.yaml", "nodes=3", "devices_per_node=1", *settings)


def remote_dir(bed: Testbed, run: str, number: int = 0) -> Path:
    node = bed.nodes[number]
    return node.home / ".ostrain" / "runs" / run / node.name


def by_prefix(lines: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in lines:
        prefix, _, text = line.partition(" | ")
        found.setdefault(prefix, []).append(text)
    return found


STEPS = ("train.steps=24", "train.checkpoint.every=4")


def test_three_nodes_train_and_killed_clients_together_show_every_line_once(bed: Testbed, remote: Cli) -> None:
    """Also the reference for the next test: it must end undisturbed. A lost connection disturbs only the client."""
    run = remote.submit(*cluster(remote, *STEPS))
    outputs = []
    for number in range(3):
        path = remote.folder / f"out-{number}"
        outputs.append(path)
        with path.open("wb") as out:
            client = remote.start("logs", "-f", run, stdout=out)
        if number < 2:
            wait_for(lambda path=path: path.stat().st_size > 200)
            time.sleep(1.0)
            client.kill()
        else:
            wait_for(lambda path=path: path.stat().st_size > 200)
            bed.nodes[2].stop_sshd()
            time.sleep(1.0)
            bed.nodes[2].start_sshd()
        code = client.wait(timeout=150)
    assert code == 0
    shown = by_prefix([line for path in outputs for line in path.read_text().splitlines()])
    logs = [remote_dir(bed, run, number) / f"logs/attempt-1/worker_{number}.log" for number in range(3)]
    written = {f"node-{number}/{number}": path.read_text().splitlines() for number, path in enumerate(logs)}
    assert shown == written
    assert all(sum(" INFO step " in line for line in lines) == 24 for lines in written.values())
    told = remote.status(run)
    assert (told["state"], told["progress"]["step"]) == ("SUCCEEDED", 24)
    again = remote("logs", run, "--node", "node-1", "--grep", r"step 7/").stdout.splitlines()
    assert len(again) == 1
    assert again[0].startswith("node-1/1 | ")
    reference.update(losses(remote_dir(bed, run)))


# step -> (loss, gradient norm) of the undisturbed run above.
reference: dict[int, tuple[float, float]] = {}


def wait_for(true: Any, timeout: float = 90) -> None:
    end = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_killed_worker_is_named_the_other_nodes_are_stopped_and_resume_is_bitwise(bed: Testbed, remote: Cli) -> None:
    assert reference, "the test before this one gives the losses to compare with"
    words = [word for one in (*SMALL, *cluster(remote, *STEPS)) for word in ("--set", one)]
    client = remote.start("submit", str(QUICKSTART), "--follow", *words, stdout=subprocess.PIPE)
    assert client.stdout is not None
    run = client.stdout.readline().decode().strip()
    told = remote.wait(run, lambda told: step_of(told) >= 9, timeout=150)
    bed.nodes[1].kill(worker_pid(told, 1), signal.SIGKILL)
    killed = time.monotonic()
    told = remote.wait(run, lambda told: told["state"] == "FAILED", timeout=15)
    assert time.monotonic() - killed < 15
    fault = told["fault"]
    assert (fault["node"], fault["rank"], fault["signal"], told["attempt"]) == ("node-1", 1, "SIGKILL", 1)
    _, talk = client.communicate(timeout=40)
    assert client.returncode == 1
    assert b"node-1 rank 1 was killed by SIGKILL" in talk
    told = remote.status(run)
    assert (told["settled"], {one["state"] for one in told["nodes"].values()}) == (True, {"FAILED"})
    assert "node node-1 rank 1 was killed by SIGKILL (attempt 1)" in remote("status", run, code=1).stdout
    remote("resume", run, "--follow", timeout=240)
    assert remote.status(run)["attempt"] == 2
    assert losses(remote_dir(bed, run)) == reference


def test_cancel_of_one_of_two_runs_leaves_the_other_untouched(bed: Testbed, remote: Cli) -> None:
    two = ("nodes=2", "train.steps=5000")
    other = remote.submit(*cluster(remote, *two, "name=other"))
    doomed = remote.submit(*cluster(remote, *two, "name=doomed"))
    told = remote.wait(doomed, lambda told: workers(told) == 2)
    before = remote.wait(other, lambda told: workers(told) == 2)
    bed.nodes[0].kill(worker_pid(told, 0), signal.SIGSTOP)
    report = json.loads(remote("cancel", doomed, "--grace", "3", "--json").stdout)
    assert all(node["killed"] and not node["survivors"] for node in report["nodes"].values())
    for node in bed.nodes:
        assert node.processes(f"OSTRAIN_RUN={doomed}") == {}
    assert remote.status(doomed)["state"] == "CANCELLED"
    after = remote.wait(other, lambda told: step_of(told) >= 3)
    assert after["state"] == "RUNNING"
    assert [worker_pid(after, rank) for rank in range(2)] == [worker_pid(before, rank) for rank in range(2)]


def workers(told: dict[str, Any]) -> int:
    running = [one for node in told["nodes"].values() for one in node["workers"] if one["state"] == "running"]
    return sum(one["rank"] is not None for one in running)


def refused(remote: Cli, code: int, *settings: str) -> str:
    """Submit what cannot start; nothing of it may be left."""
    words = [word for one in cluster(remote, "train.steps=3", *settings) for word in ("--set", one)]
    text = remote("submit", str(QUICKSTART), *words, code=code).stderr
    assert json.loads(remote("ps", "--all", "--json").stdout) == []
    assert "next:" in text
    return text


def test_unknown_host_key_wrong_user_and_missing_python_are_told_and_leave_nothing(bed: Testbed, remote: Cli) -> None:
    known = bed.home / ".ssh" / "known_hosts"
    lines = known.read_text()
    known.write_text("".join(lines.splitlines(keepends=True)[:2]))
    try:
        text = refused(remote, 4)
    finally:
        known.write_text(lines)
    assert "node-2" in text
    assert "SHA256:" in text
    inventory = (remote.folder / "bed.yaml").read_text()
    (remote.folder / "bed.yaml").write_text(inventory.replace("defaults:\n", "defaults:\n  user: nobody\n"))
    assert "nobody" in refused(remote, 4)
    (remote.folder / "bed.yaml").write_text(inventory.replace(sys.executable, "/no/such/python3"))
    assert "/no/such/python3" in refused(remote, 3)
    (remote.folder / "bed.yaml").write_text(inventory.replace(sys.executable, "/usr/bin/python3"))
    assert "mindspore" in refused(remote, 3)


def test_an_unreachable_node_is_told_and_leaves_nothing(bed: Testbed, remote: Cli) -> None:
    bed.nodes[1].stop_sshd()
    try:
        text = refused(remote, 4)
    finally:
        bed.nodes[1].start_sshd()
    assert "node-1" in text
    assert "node-0" not in text


def test_client_killed_in_submit_over_ssh_leaves_a_run_that_can_be_ended(bed: Testbed, remote: Cli) -> None:
    words = [word for one in cluster(remote, "train.steps=4000") for word in ("--set", one)]
    for delay in (0.7, 1.2, 1.8):
        client = remote.start("submit", str(QUICKSTART), *words)
        time.sleep(delay)
        client.kill()
        client.communicate(timeout=20)
    for row in json.loads(remote("ps", "--json").stdout):
        remote("cancel", row["run_id"])
        assert not any(node.processes(f"OSTRAIN_RUN={row['run_id']}") for node in bed.nodes)


def test_the_testbed_by_hand(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.testbed", "--help"],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=ROOT,
        check=True,
    )
    assert "up" in done.stdout

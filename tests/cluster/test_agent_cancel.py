"""Cancel ends exactly the run's own processes, whatever they do to escape."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.backend import NodeError
from tests.cluster.conftest import LocalSite, environ_tags
from tests.cluster.toys import good, wait_ready, wait_state, wait_until

# Every worker writes the pids it wants ended into ``pids``.
_HEAD = (
    "import os, signal, subprocess, sys, time\ndef note(pid): open('pids', 'a').write(f'{pid}\\n')\nnote(os.getpid())\n"
)
_TAIL = "\nprint('ready', flush=True)\ntime.sleep(300)\n"
_NAP = "[sys.executable, '-c', 'import time; time.sleep(300)']"
ESCAPES = {
    "plain": "",
    "ignores SIGTERM": "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "stopped": "if os.fork() == 0:\n    note(os.getpid())\n    os.kill(os.getpid(), signal.SIGSTOP)",
    "own session": f"note(subprocess.Popen({_NAP}, start_new_session=True).pid)",
    "double fork": (
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        note(os.getpid())\n        time.sleep(300)\n    os._exit(0)"
    ),
    "no environment": f"note(subprocess.Popen({_NAP}, env={{}}).pid)",
    "double fork without environment": (
        "if os.fork() == 0:\n    os.setsid()\n    child = os.fork()\n    if child == 0:\n"
        f"        os.execve(sys.executable, {_NAP}, {{}})\n    note(child)\n    os._exit(0)"
    ),
}


def pids_of(site: LocalSite, run: object) -> list[int]:
    return [int(line) for line in (site.run_dir(run) / "pids").read_text().split()]  # type: ignore[arg-type]


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("name", ESCAPES)
def test_nothing_escapes(site: LocalSite, name: str) -> None:
    run = site.start(_HEAD + ESCAPES[name] + _TAIL)
    wait_ready(site.backend, run)
    count = 1 if name in ("plain", "ignores SIGTERM") else 2
    pids = wait_until(lambda: (found := pids_of(site, run)) and len(found) == count and found)
    site.pids += pids
    began = time.monotonic()
    report = good(site.backend.stop(run, grace=1.0))["node-0"]
    assert time.monotonic() - began < 8
    assert [pid for pid in pids if lives(pid)] == []
    assert (report["survivors"], report["state"]) == ([], "CANCELLED")
    assert set(pids) <= {entry["pid"] for entry in report["killed"]}
    assert not environ_tags("OSTRAIN_RUN=run-1")
    status = good(site.backend.poll(run))["node-0"]
    assert (status["state"], status["reason"], status["fault"]) == ("CANCELLED", "cancelled", None)


def test_the_report_tells_rank_and_signal(site: LocalSite) -> None:
    worker = "import os, signal, time\nif os.environ['RANK_ID'] == '1': signal.signal(15, signal.SIG_IGN)\n" + _TAIL
    run = site.start(worker, ranks=(0, 1))
    wait_ready(site.backend, run)
    killed = good(site.backend.stop(run, grace=0.5))["node-0"]["killed"]
    assert {entry["rank"]: entry["signal"] for entry in killed if entry["rank"] is not None} == {
        0: "SIGTERM",
        1: "SIGKILL",
    }
    assert all("worker.py" in entry["command"] for entry in killed if entry["rank"] is not None)


def test_workers_get_their_grace(site: LocalSite) -> None:
    worker = (
        "import os, signal, sys, time\n"
        "def end(*_):\n    time.sleep(0.7)\n    open('saved-' + os.environ['RANK_ID'], 'w').close()\n    os._exit(0)\n"
        "signal.signal(signal.SIGTERM, end)" + _TAIL
    )
    run = site.start(worker, ranks=(0, 1))
    wait_ready(site.backend, run)
    good(site.backend.stop(run, grace=5.0))
    assert sorted(path.name for path in site.run_dir(run).glob("saved-*")) == ["saved-0", "saved-1"]


def test_another_run_of_the_same_user_is_untouched(site: LocalSite) -> None:
    one, other = site.start(name="run-1"), site.start(name="run-10")
    wait_ready(site.backend, one)
    before = wait_ready(site.backend, other)
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "OSTRAIN_RUN=run-1"])
    try:
        tags = environ_tags("OSTRAIN_RUN=run-10")
        good(site.backend.stop(one, grace=1.0))
        assert environ_tags("OSTRAIN_RUN=run-10") == tags and tags
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
    after = good(site.backend.poll(other))["node-0"]
    assert after["state"] == "RUNNING" and after["workers"] == before["workers"]


def test_a_stopped_agent_is_woken(site: LocalSite) -> None:
    run = site.start()
    agent = wait_ready(site.backend, run)["agent"]["pid"]
    os.kill(agent, signal.SIGSTOP)
    report = good(site.backend.stop(run, grace=1.0))["node-0"]
    assert (report["survivors"], report["state"]) == ([], "CANCELLED")
    assert not lives(agent)


def test_a_dead_agents_leftovers_are_swept(site: LocalSite) -> None:
    run = site.start(_HEAD + ESCAPES["own session"] + "\n" + ESCAPES["double fork without environment"] + _TAIL)
    agent = wait_ready(site.backend, run)["agent"]["pid"]
    pids = wait_until(lambda: (found := pids_of(site, run)) and len(found) == 3 and found)
    site.pids += pids
    wait_until(lambda: (site.run_dir(run) / "agent/strays.json").exists(), what="the agent notes untagged descendants")
    os.kill(agent, signal.SIGKILL)
    wait_until(lambda: not lives(pids[0]))
    assert any(lives(pid) for pid in pids), "else there is nothing to sweep"
    report = good(site.backend.stop(run, grace=1.0))["node-0"]
    assert report["survivors"] == [] and not any(lives(pid) for pid in pids)
    assert report["state"] == "FAILED", "it had failed before it was cancelled"
    assert good(site.backend.poll(run))["node-0"]["reason"] == "agent_lost"


def test_a_run_that_ended_keeps_its_state(site: LocalSite) -> None:
    run = site.start("pass")
    wait_state(site.backend, run, "SUCCEEDED")
    report = good(site.backend.stop(run))["node-0"]
    assert report == {"killed": [], "survivors": [], "state": "SUCCEEDED"}
    assert good(site.backend.poll(run))["node-0"]["state"] == "SUCCEEDED"


def test_cancel_before_the_start_and_resume_after_it(site: LocalSite) -> None:
    run = site.run("pass")
    good(site.backend.stage(run, site.bundle()))
    assert good(site.backend.stop(run))["node-0"]["state"] == "CANCELLED"
    good(site.backend.start(run, 1, {}))
    wait_state(site.backend, run, "SUCCEEDED")


def test_another_reason_than_cancelled_is_a_failure(site: LocalSite) -> None:
    run = site.start()
    wait_ready(site.backend, run)
    assert good(site.backend.stop(run, grace=1.0, reason="start_failed"))["node-0"]["state"] == "FAILED"
    assert good(site.backend.poll(run))["node-0"]["reason"] == "start_failed"


def test_remove_refuses_while_processes_live(site: LocalSite) -> None:
    run = site.start()
    wait_ready(site.backend, run)
    answer = site.backend.remove(run)["node-0"]
    assert isinstance(answer, NodeError) and "still has processes" in answer.what
    good(site.backend.stop(run, grace=1.0))
    good(site.backend.remove(run))
    assert not (site.root / "runs" / run.run_id).exists()
    answer = site.backend.poll(run)["node-0"]
    assert isinstance(answer, NodeError) and answer.kind == "no_run"


def test_a_cancel_is_recorded_before_it_kills(site: LocalSite) -> None:
    run = site.start()
    wait_ready(site.backend, run)
    good(site.backend.stop(run, grace=1.0))
    assert json.loads((site.run_dir(run) / "agent/cancel").read_text())["reason"] == "cancelled"

"""A run's life on one node: how it ends, and what is recorded of it. Real agents, real processes."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import agent
from cluster.backend import NodeError
from models import exits
from ostrain import states
from tests.cluster.conftest import LocalSite, environ_tags
from tests.cluster.toys import good, launch, wait_ready, wait_state, wait_until


def events(site: LocalSite, run: object) -> list[dict[str, object]]:
    return [json.loads(line) for line in (site.run_dir(run) / "events.jsonl").read_text().splitlines()]  # type: ignore[arg-type]


def test_worker_exits_are_the_tables_of_both_halves() -> None:
    assert agent.WORKER_EXITS == states.WORKER_EXITS == exits.KINDS


def test_every_reason_of_the_agent_is_in_the_table() -> None:
    words = {"done", "running", "preparing", "cancelled", "survivors", "agent_lost", "node_rebooted", "start_failed"}
    words |= {"worker_killed", "worker_failed", "launcher_failed", "launcher_killed", *agent.WORKER_EXITS.values()}
    assert words <= set(states.REASONS)


def test_success_needs_every_worker_and_the_launcher(site: LocalSite) -> None:
    run = site.start("import time; time.sleep(0.3)", ranks=(0, 1))
    status = wait_state(site.backend, run, "SUCCEEDED")
    assert status["reason"] == "done" and status["fault"] is None
    assert [(w["rank"], w["state"], w["exit_code"], w["signal"]) for w in status["workers"]] == [
        (0, "ended", 0, None),
        (1, "ended", 0, None),
    ]
    assert all(w["ended"] >= w["started"] + 0.3 for w in status["workers"])
    assert [event["event"] for event in events(site, run)][-1] == "ended"
    wait_until(lambda: not environ_tags("OSTRAIN_RUN=run-1"))


def test_launcher_that_returns_0_too_early_has_failed(site: LocalSite) -> None:
    run = site.start(launch="true", ranks=(0, 1))
    status = wait_state(site.backend, run, "FAILED")
    assert status["reason"] == "launcher_failed"
    assert "rank 0, 1" in status["fault"]["message"]["what"]


def test_launcher_that_fails_alone(site: LocalSite) -> None:
    run = site.start(launch="echo no such option >&2; exit 3;")
    status = wait_state(site.backend, run, "FAILED")
    assert status["reason"] == "launcher_failed"
    assert status["fault"]["exit_code"] == 3 and status["fault"]["rank"] is None
    assert status["fault"]["tail"] == ["no such option"]


@pytest.mark.parametrize("code, reason", [(1, "worker_failed"), *agent.WORKER_EXITS.items()])
def test_a_workers_exit_code_gives_the_reason(site: LocalSite, code: int, reason: str) -> None:
    worker = f"import os, sys, time\nif os.environ['RANK_ID'] == '1': sys.exit({code})\ntime.sleep(300)"
    run = site.start(worker, ranks=(0, 1))
    began = time.monotonic()
    status = wait_state(site.backend, run, "FAILED")
    assert time.monotonic() - began < 10, "the agent must not wait for the launcher's own end"
    fault = status["fault"]
    assert (status["reason"], fault["rank"], fault["exit_code"], fault["signal"]) == (reason, 1, code, None)
    assert fault["log"] == "logs/attempt-1/worker_1.log"
    assert not environ_tags("OSTRAIN_RUN=run-1")


def test_the_payloads_own_words_are_in_the_fault(site: LocalSite) -> None:
    worker = (
        "import json, os, sys\n"
        "path = os.path.join(os.environ['OSTRAIN_RUN_DIR'], 'faults', 'attempt-1', 'rank-0.json')\n"
        "told = {'kind': 'bad_data', 'what': 'no clip', 'where': 'train.csv:3', 'why': 'gone', 'next': 'put it back'}\n"
        "json.dump(told, open(path, 'w'))\n"
        "print('last words', flush=True)\n"
        "sys.exit(65)\n"
    )
    status = wait_state(site.backend, site.start(worker), "FAILED")
    assert status["reason"] == "bad_data"
    assert status["fault"]["message"] == {
        "what": "no clip",
        "where": "train.csv:3",
        "why": "gone",
        "next": "put it back",
    }
    assert status["fault"]["tail"][-1] == "last words"


def test_the_first_fault_is_the_earliest_end(site: LocalSite) -> None:
    worker = (
        "import os, sys, time\n"
        "first = os.environ['RANK_ID'] == '2'\n"
        "time.sleep(0.5 if first else 0.58)\n"
        "sys.exit(66 if first else 1)"
    )
    status = wait_state(site.backend, site.start(worker, ranks=(0, 1, 2)), "FAILED")
    ended = {w["rank"]: w["ended"] for w in status["workers"] if w["exit_code"] is not None}
    assert status["fault"]["rank"] == min(ended, key=lambda rank: ended[rank])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_worker(site: LocalSite, number: signal.Signals) -> None:
    run = site.start(ranks=(0, 1))
    victim = next(w for w in wait_ready(site.backend, run)["workers"] if w["rank"] == 1)
    os.kill(victim["pid"], number)
    status = wait_state(site.backend, run, "FAILED", bound=5)
    fault = status["fault"]
    assert (status["reason"], fault["rank"], fault["pid"]) == ("worker_killed", 1, victim["pid"])
    assert (fault["signal"], fault["exit_code"]) == (number.name, None)
    assert not environ_tags("OSTRAIN_RUN=run-1")


def test_a_killed_wrapper_takes_its_worker_with_it(site: LocalSite) -> None:
    run = site.start(ranks=(0, 1))
    workers = wait_ready(site.backend, run)["workers"]
    record = json.loads((site.run_dir(run) / "workers/attempt-1/rank-1.json").read_text())
    os.kill(record["wrapper_pid"], signal.SIGKILL)
    status = wait_state(site.backend, run, "FAILED", bound=5)
    assert status["reason"] == "worker_killed"
    assert (status["fault"]["rank"], status["fault"]["signal"]) == (1, "SIGKILL")
    assert next(w for w in status["workers"] if w["rank"] == 1)["state"] == "vanished"
    assert all(not os.path.exists(f"/proc/{worker['pid']}") for worker in workers)


def test_a_killed_launcher_is_not_blamed_on_its_workers(site: LocalSite) -> None:
    run = site.start(ranks=(0, 1))
    wait_ready(site.backend, run)
    launcher = json.loads((site.run_dir(run) / "agent/state.json").read_text())["launcher"]["pid"]
    os.kill(launcher, signal.SIGKILL)
    status = wait_state(site.backend, run, "FAILED", bound=5)
    assert status["reason"] == "launcher_killed"
    assert (status["fault"]["rank"], status["fault"]["signal"]) == (None, "SIGKILL")
    assert not environ_tags("OSTRAIN_RUN=run-1")


@pytest.mark.parametrize("launch_line", ['exec "$PYTHON" launcher.py', '"$PYTHON" launcher.py'])
def test_a_killed_agent_leaves_nothing_that_trains(site: LocalSite, launch_line: str) -> None:
    run = site.start(ranks=(0, 1), launch=launch_line)
    status = wait_ready(site.backend, run)
    os.kill(status["agent"]["pid"], signal.SIGKILL)
    after = wait_state(site.backend, run, "FAILED", bound=5)
    assert (after["state"], after["reason"], after["agent"]["alive"]) == ("FAILED", "agent_lost", False)
    assert after["fault"]["message"]["what"]
    pids = [worker["pid"] for worker in status["workers"]]
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), what="workers of a killed agent end")


def test_resume_after_a_killed_agent_sweeps_what_is_left(site: LocalSite) -> None:
    worker = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'], start_new_session=True)\n"
        "print('ready', flush=True)\ntime.sleep(300)"
    )
    run = site.start(worker)
    status = wait_ready(site.backend, run)
    os.kill(status["agent"]["pid"], signal.SIGKILL)
    left = wait_until(lambda: [pid for pid in environ_tags("OSTRAIN_RUN=run-1") if pid != status["workers"][0]["pid"]])
    launch(site.backend, run, site.bundle(), attempt=2)
    assert not set(left) & set(environ_tags("OSTRAIN_RUN=run-1"))
    assert wait_ready(site.backend, run)["attempt"] == 2


def test_a_second_start_is_refused(site: LocalSite) -> None:
    run = site.start()
    wait_ready(site.backend, run)
    path = str(site.run_dir(run))
    with pytest.raises(NodeError, match="already has a live agent"):
        site.backend.client(run.plan.nodes[0]).call(
            "start", path, input={"attempt": 2, "command": ["true"]}, timeout=30
        )
    status = good(site.backend.poll(run))["node-0"]
    assert (status["state"], status["attempt"]) == ("RUNNING", 1)


def test_a_launcher_that_cannot_be_executed(site: LocalSite) -> None:
    run = site.run()
    good(site.backend.stage(run, site.bundle()))
    with pytest.raises(NodeError, match="'no-such-program' could not be started"):
        site.backend.client(run.plan.nodes[0]).call(
            "start", str(site.run_dir(run)), input={"attempt": 1, "command": ["no-such-program"]}, timeout=30
        )
    status = good(site.backend.poll(run))["node-0"]
    assert (status["state"], status["reason"]) == ("FAILED", "start_failed")
    assert "no-such-program" in status["fault"]["message"]["what"]


def test_start_without_bundle_is_no_run(site: LocalSite) -> None:
    run = site.run()
    answer = site.backend.start(run, 1, {})["node-0"]
    assert isinstance(answer, NodeError) and answer.kind == "no_run"


def test_each_attempt_keeps_its_logs(site: LocalSite) -> None:
    run = site.start("import os, sys; print('attempt', os.environ['OSTRAIN_ATTEMPT']); sys.exit(1)")
    wait_state(site.backend, run, "FAILED")
    launch(site.backend, run, site.bundle(), attempt=2)
    assert wait_state(site.backend, run, "FAILED")["attempt"] == 2
    for number in (1, 2):
        log = site.run_dir(run) / f"logs/attempt-{number}/worker_0.log"
        assert log.read_text() == f"attempt {number}\n"


def test_the_environment_of_a_worker(site: LocalSite) -> None:
    worker = "import json, os, sys; json.dump({**os.environ, 'path0': sys.path[1]}, open('seen.json', 'w'))"
    run = site.start(worker)
    wait_state(site.backend, run, "SUCCEEDED")
    seen, path = json.loads((site.run_dir(run) / "seen.json").read_text()), str(site.run_dir(run))
    assert (seen["OSTRAIN_RUN"], seen["OSTRAIN_NODE"], seen["OSTRAIN_ATTEMPT"]) == ("run-1", "node-0", "1")
    assert (seen["OSTRAIN_RUN_DIR"], seen["OSTRAIN_LOG_DIR"]) == (path, path + "/logs/attempt-1")
    assert seen["path0"] == seen["OSTRAIN_BUNDLE"] and seen["OSTRAIN_BUNDLE"].startswith(str(site.root / "bundles"))
    assert 1024 <= int(seen["OSTRAIN_MASTER_PORT"]) <= 65535
    assert os.path.isfile(seen["OSTRAIN_AGENT"])


def test_the_scheduler_is_no_worker_but_its_death_is_a_fault(site: LocalSite) -> None:
    launcher = (
        "import os, subprocess, sys\n"
        "def start(role, rank):\n"
        "    env = dict(os.environ, MS_ROLE=role, RANK_ID=str(rank))\n"
        "    log = open(os.path.join(os.environ['OSTRAIN_LOG_DIR'], role), 'wb')\n"
        "    argv = [sys.executable, os.environ['OSTRAIN_AGENT'], 'worker', '--', sys.executable, 'worker.py']\n"
        "    return subprocess.Popen(argv, env=env, stdout=log, stderr=log, preexec_fn=os.setsid)\n"
        "for process in [start('MS_SCHED', 0), start('MS_WORKER', 0)]: process.wait()\n"
    )
    run = site.start(launch=f"cat > l.py <<'END'\n{launcher}END\nexec \"$PYTHON\" l.py")
    path = site.run_dir(run) / "workers/attempt-1"
    wait_until(lambda: (path / "scheduler.json").exists() and (path / "rank-0.json").exists())
    assert [w["rank"] for w in good(site.backend.poll(run))["node-0"]["workers"]] == [0]
    os.kill(json.loads((path / "scheduler.json").read_text())["pid"], signal.SIGKILL)
    status = wait_state(site.backend, run, "FAILED", bound=5)
    assert status["reason"] == "launcher_killed"
    assert (status["fault"]["rank"], status["fault"]["message"]["what"]) == (None, "the scheduler ended")


def test_the_agent_runs_on_python_3_8_with_nothing_installed() -> None:
    source = Path(agent.__file__).read_text()
    tree = ast.parse(source, feature_version=(3, 8))
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {name.partition(".")[0] for name in imported} <= set(sys.stdlib_module_names)
    too_new = {"removeprefix", "removesuffix", "pidfd_open", "waitstatus_to_exitcode"}
    assert not too_new & {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


@pytest.fixture
def small_disk(site: LocalSite) -> Iterator[Path]:
    """A root on a file system of 2 MB."""
    site.root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(site.root)], check=True, timeout=10)
    yield site.root
    site.close()
    site.runs.clear()
    subprocess.run(["umount", "-l", str(site.root)], check=True, timeout=10)


FILL = (
    "import os, sys, time\n"
    "try:\n"
    "    with open('big', 'wb', buffering=0) as file:\n"
    "        while True: file.write(bytes(4096))\n"
    "except OSError:\n"
    "    pass\n"
)


@pytest.mark.nodes
def test_a_full_disk_still_ends_in_the_right_state(site: LocalSite, small_disk: Path) -> None:
    run = site.start(FILL + "sys.exit(67)")
    status = wait_state(site.backend, run, "FAILED")
    assert (status["reason"], status["fault"]["exit_code"]) == ("disk_full", 67)
    assert not environ_tags("OSTRAIN_RUN=run-1")


@pytest.mark.nodes
def test_cancel_works_on_a_full_disk(site: LocalSite, small_disk: Path) -> None:
    run = site.start(FILL + "time.sleep(300)")
    wait_until(lambda: os.statvfs(small_disk).f_bavail == 0)
    report = good(site.backend.stop(run, grace=1.0))["node-0"]
    assert (report["state"], report["survivors"]) == ("CANCELLED", [])
    assert good(site.backend.poll(run))["node-0"]["state"] == "CANCELLED"

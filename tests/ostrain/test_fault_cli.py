"""`ostrain stuck`, `why` and `bundle` on real agents and processes: toy workers on two local nodes."""

from __future__ import annotations

import json
import os
import signal
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cluster.backend import RunRef
from cluster.local_backend import LocalBackend
from ostrain.cli.bundle import bundle
from ostrain.cli.stuck import stuck
from ostrain.cli.why import why
from ostrain.paths import state_dir
from ostrain.plan import NodeAccess, PlanFile
from ostrain.states import State
from ostrain.store import Store
from tests.cluster.toys import launch, make_plan, node_plan, toy_bundle, wait_state, wait_until
from tests.cluster.workers import worker

SECRET = "correct-horse-battery-staple"
# Rank 3 fails for want of memory after a few steps; whoever waits for it loses the connection, and says so later.
FAILING = """
import os, sys, time
rank = int(os.environ["RANK_ID"])
def line(level, text):
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
    print(f"{stamp} {level} {text}", flush=True)
line("INFO", "token=hunter22hunter22 " + os.environ.get("HF_TOKEN", ""))
line("INFO", "step 1/20 loss 0.5")
if rank == 3:
    line("ERROR", "Traceback (most recent call last):")
    line("ERROR", "RuntimeError: Malloc device memory failed: out of memory")
    sys.exit(1)
while not os.path.exists(os.environ["OSTRAIN_RUN_DIR"] + "/../node-1/heartbeat/failed"):
    time.sleep(0.02)
line("ERROR", "RuntimeError: Connection reset by peer")
sys.exit(1)
"""


class Place:
    """Two local nodes of two ranks each, in a state folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.backend, self.store, self.folder = LocalBackend(), Store(), folder
        self.refs: list[RunRef] = []

    def run(self, source: str, **changes: Any) -> RunRef:
        access = NodeAccess("localhost", root=str(state_dir()), python=sys.executable)
        extra = [PlanFile("env.sh", "export API_PASSWORD='tr0ub4dor&3'\n", 0o600)]
        nodes = [
            node_plan(f"node-{n}", access, source, ranks=(2 * n, 2 * n + 1), node_rank=n, files=extra) for n in (0, 1)
        ]
        plan = replace(make_plan("local", nodes), **changes)
        pack = toy_bundle(self.folder)
        run = self.store.add(plan, str(self.folder / "job.yaml"), str(pack))
        ref = RunRef(run.run_id, plan)
        self.refs.append(ref)
        launch(self.backend, ref, pack, **({"HF_TOKEN": SECRET} if plan.secrets else {}))
        self.store.release(run.run_id, State.RUNNING, "running")
        return ref

    def status(self, ref: RunRef) -> dict[str, Any]:
        return {name: one for name, one in self.backend.poll(ref).items() if isinstance(one, dict)}

    def close(self) -> None:
        for ref in self.refs:
            self.backend.stop(ref, grace=0.0)
        self.store.close()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    for name in ("STATE", "CONFIG", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.chdir(tmp_path)
    made = Place(tmp_path)
    yield made
    made.close()


def invoke(command: Any, *words: str) -> Result:
    result = CliRunner().invoke(command, list(words), standalone_mode=False)
    assert result.exception is None, result.output
    return result


def waiting(place: Place, ref: RunRef) -> bool:
    beats = [beat for status in place.status(ref).values() for beat in status["heartbeat"]]
    return len(beats) == 4


def test_a_stopped_worker_and_one_elsewhere_are_named(place: Place) -> None:
    ref = place.run(worker("all_reduce", odd={2: "load_clip"}))
    wait_until(lambda: waiting(place, ref))
    told = json.loads(invoke(stuck, ref.run_id, "--json").stdout)
    assert (told["suspect"]["rank"], told["suspect"]["node"]) == (2, "node-1")
    assert told["suspect"]["frame"].endswith("worker.py:16 load_clip")
    assert told["suspect"]["why"].startswith("it is elsewhere while 3 others wait in ")

    pid = next(one["pid"] for one in place.status(ref)["node-0"]["workers"] if one["rank"] == 1)
    os.kill(pid, signal.SIGSTOP)
    start = time.monotonic()
    result = invoke(stuck, ref.run_id)
    assert time.monotonic() - start < 8.0
    assert result.stdout.splitlines()[0] == "rank 1 on node node-0 at step 3: its process is stopped (SIGSTOP)"
    assert len(result.stdout.splitlines()) == 2 + 1 + 4
    assert "no fault: no worker ended badly" in invoke(why, ref.run_id).stdout


def failed_run(place: Place, **changes: Any) -> RunRef:
    ref = place.run(FAILING, **changes)
    node_1 = state_dir() / "runs" / ref.run_id / "node-1"
    wait_until(lambda: place.status(ref)["node-1"]["state"] == "FAILED")
    (node_1 / "heartbeat/failed").touch()
    wait_state(place.backend, ref, "FAILED")
    return ref


def test_why_names_the_first_and_explains_it(place: Place) -> None:
    ref = failed_run(place)
    result = invoke(why, ref.run_id)
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{ref.run_id}  FAILED  worker_failed")
    assert lines[2].startswith("first fault: rank 3 on node node-1 (logs/attempt-1/worker_3.log) at ")
    assert lines[3] == "  RuntimeError: Malloc device memory failed: out of memory"
    assert "  means: the device's memory is used up (device_oom)" in lines
    told = json.loads(invoke(why, ref.run_id, "--json").stdout)
    assert {one["rank"] for one in told["consequences"]} == {0, 1, 2}
    assert [one for one in told["consequences"] if one["code"] == "connection_broken"]
    assert told["clocks"]["node-0"]["uncertainty"] == 0.0


def test_a_bundle_holds_what_is_known_and_no_secret(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSTRAIN_SECRET_HF_TOKEN", SECRET)
    (tmp_path / "job.yaml").write_text(f"name: toy\n# {SECRET}\nenv: {{DB: 'postgres://me:s3cr3tpass@db/x'}}\n")
    ref = failed_run(place, secrets={"HF_TOKEN": "hf_token"})
    result = invoke(bundle, ref.run_id, "-o", "out.tar.gz", "--json")
    told = json.loads(result.stdout)
    assert told["path"] == "out.tar.gz" and told["masked"]["value of a secret"] >= 1
    assert (tmp_path / "out.tar.gz").stat().st_mode & 0o777 == 0o600
    with tarfile.open("out.tar.gz") as archive:
        texts = {name: archive.extractfile(name).read().decode() for name in archive.getnames()}  # type: ignore[union-attr]
    assert all(name.startswith(f"{ref.run_id}-support/") for name in texts)
    names = {name.split("/", 1)[1] for name in texts}
    assert {"why.txt", "status.json", "plan.json", "job/job.yaml", "versions.json", "manifest.json"} <= names
    assert {"nodes/node-1/logs/attempt-1/worker_3.log", "nodes/node-0/events.jsonl", "rendered/node-0/env.sh"} <= names
    everything = "".join(texts.values())
    for planted in (SECRET, "hunter22hunter22", "s3cr3tpass", "tr0ub4dor"):
        assert planted not in everything, planted
    assert "hf_token" in everything and "Malloc device memory failed" in everything
    assert sorted(path.name for path in tmp_path.glob("*.tar.gz*")) == ["bundle.tar.gz", "out.tar.gz"]
    again = CliRunner().invoke(bundle, [ref.run_id, "-o", "out.tar.gz"], standalone_mode=False)
    assert "out.tar.gz exists" in str(again.exception)
    result = CliRunner().invoke(stuck, [ref.run_id], standalone_mode=False)
    assert f"run {ref.run_id} has ended" in str(result.exception)


def test_codes_are_explained_by_themselves() -> None:
    assert "means: the rank table is invalid" in invoke(why, "--code", "ei0004").stdout
    assert json.loads(invoke(why, "--code", "SIGKILL", "--json").stdout)["kind"] == "killed"
    result = CliRunner().invoke(why, ["--code", "XY"], standalone_mode=False)
    assert "'XY' is no code known here" in str(result.exception)

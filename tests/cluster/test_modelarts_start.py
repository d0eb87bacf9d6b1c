"""What a container knows of itself, and what it hands over: two "containers" on this machine."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.modelarts_mirror import Mirror, restore
from cluster.modelarts_place import (
    StartFailed,
    check_size,
    derived_port,
    own_number,
    unseal,
    wait_for_all,
    worker_hosts,
)
from cluster.modelarts_run import STARTERS, archives, code_files
from cluster.sealed import seal
from ostrain.errors import OstrainError
from ostrain.plan import LaunchPlan, NodeAccess, PlanFile
from tests.cluster.toys import make_plan, node_plan, toy_bundle, wait_until

SERVICE = {
    "region": "cn-north-4",
    "project_id": "p",
    "flavor_id": "f",
    "image": "o/i:1",
    "obs": "obs://b-1/x",
    "sync": 1.0,
}
RUN = f"containers-{os.getpid()}"  # agents end everything that carries their run's name, whoever started it
WORKER = """
import os, time
print(os.environ["OSTRAIN_NODE_RANK"], os.environ["OSTRAIN_MASTER_ADDRESS"], os.environ["OSTRAIN_MASTER_PORT"],
      os.environ.get("RANK_TABLE_FILE"), len(os.environ.get("TOKEN", "")),
      [name for name in os.environ if "SEALED" in name], flush=True)
{then}
"""


def two(tmp_path: Path, then: str = "", wait: float = 10.0) -> LaunchPlan:
    access = NodeAccess("node", root=str(tmp_path / "root"), python=sys.executable)
    start = PlanFile(
        "start.sh", f'#!/bin/sh\ncd "$(dirname "$0")/start"\nexec {sys.executable} -m cluster.modelarts_start .. "$@"\n'
    )
    worker = WORKER.format(then=then)
    nodes = [node_plan(f"node-{i}", access, worker, (i,), i, files=(start,)) for i in range(2)]
    return make_plan("modelarts", nodes, service={**SERVICE, "wait": wait})


def code_folder(tmp_path: Path, plan: LaunchPlan) -> Path:
    bundle = toy_bundle(tmp_path)
    contents = {**code_files(RUN, plan, bundle), **{n: p.read_bytes() for n, p in archives(plan, bundle).items()}}
    for name, data in contents.items():
        path = tmp_path / "code" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "code"


def container(tmp_path: Path, index: int, **env: str) -> subprocess.Popen[bytes]:
    own = {
        "PATH": os.environ["PATH"], "OSTRAIN_ATTEMPT": "1", "VC_WORKER_HOSTS": "localhost,127.0.0.1",
        "VC_TASK_INDEX": str(index), "MA_NUM_HOSTS": "2", "MA_NUM_GPUS": "8", "RANK_TABLE_FILE": "/user/config",
    }  # fmt: skip
    code = [str(tmp_path / "code/start.sh"), f"--ostrain_out={tmp_path}/out", f"--ostrain_restore={tmp_path}/none"]
    return subprocess.Popen(["sh", *code], env={**own, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def handed(tmp_path: Path, index: int) -> dict[str, object]:
    return dict(json.loads((tmp_path / f"out/node-{index}/status.json").read_text()))


def test_two_containers_find_each_other_and_hand_everything_over(tmp_path: Path) -> None:
    code = code_folder(tmp_path, two(tmp_path))
    sealed = seal({"TOKEN": "secret-é"})
    (code / "sealed-1").write_bytes(sealed.pad)
    # Each container has a copy of the code folder; here they share one, so the pad is put back for the second.
    first = container(tmp_path, 0, **sealed.environment)
    assert (first.wait(30), first.stdout is not None) == (0, True)
    assert not (code / "sealed-1").exists()
    (code / "sealed-1").write_bytes(sealed.pad)
    second = container(tmp_path, 1, **sealed.environment)
    assert second.wait(30) == 0
    port = derived_port(RUN, 1)
    for index in (0, 1):
        log = tmp_path / f"out/node-{index}/run/logs/attempt-1/worker_{index}.log"
        rank, address, seen_port, table, token, leaked = log.read_text().split(" ", 5)
        assert (rank, seen_port, table, leaked.strip()) == (str(index), str(port), "None", "[]")
        assert address in ("127.0.0.1", "::1") and token == "8"
        record = handed(tmp_path, index)
        assert record["status"]["state"] == "SUCCEEDED" and record["phase"] == "ended"  # type: ignore[index]
        assert record["files"][f"logs/attempt-1/worker_{index}.log"] == log.stat().st_size  # type: ignore[index]
        assert not (tmp_path / f"out/node-{index}/run/env.sh").exists()


@pytest.mark.parametrize(("then", "code"), [("raise SystemExit(66)", 66), ("os.kill(os.getpid(), 9)", 1)])
def test_the_exit_code_is_that_of_the_first_fault(tmp_path: Path, then: str, code: int) -> None:
    code_folder(tmp_path, two(tmp_path, then))
    assert container(tmp_path, 0).wait(30) == code
    assert handed(tmp_path, 0)["status"]["state"] == "FAILED"  # type: ignore[index]


def test_the_platforms_sigterm_ends_the_workers_and_is_told(tmp_path: Path) -> None:
    code_folder(tmp_path, two(tmp_path, "time.sleep(300)"))
    one = container(tmp_path, 0)
    status = tmp_path / "out/node-0/status.json"
    wait_until(lambda: status.exists() and (handed(tmp_path, 0)["status"] or {}).get("workers"))  # type: ignore[attr-defined]
    one.send_signal(signal.SIGTERM)
    assert one.wait(30) == 143
    assert handed(tmp_path, 0)["status"]["state"] == "CANCELLED"  # type: ignore[index]


def test_a_container_whose_peers_never_come_says_so(tmp_path: Path) -> None:
    code_folder(tmp_path, two(tmp_path, wait=0.2))
    one = container(tmp_path, 0, VC_WORKER_HOSTS="localhost,other.never.invalid")
    assert one.wait(30) == 1
    fault = handed(tmp_path, 0)["status"]["fault"]  # type: ignore[index]
    assert fault["message"]["what"] == "1 of 2 workers did not come up" and fault["reason"] == "start_failed"
    waiting = container(tmp_path, 1, VC_WORKER_HOSTS="localhost,other.never.invalid")
    assert waiting.wait(30) == 1


def test_numbers_and_names_of_workers() -> None:
    assert worker_hosts({"VC_WORKER_HOSTS": "a.b, c.d"}, 2) == ["a.b", "c.d"]
    assert worker_hosts({"MA_VJ_NAME": "j"}, 2) == ["j-worker-0.j", "j-worker-1.j"]
    assert worker_hosts({}, 1) == ["127.0.0.1"]
    assert (own_number({"VC_TASK_INDEX": "1"}, 2), own_number({}, 1)) == (1, 0)
    nodes = [{"ranks": [0, 1]}]
    check_size({"MA_NUM_HOSTS": "1", "MA_NUM_GPUS": "8"}, nodes, 0)
    for wrong in (
        lambda: worker_hosts({"VC_WORKER_HOSTS": "a"}, 2),
        lambda: worker_hosts({}, 2),
        lambda: own_number({"VC_TASK_INDEX": "2"}, 2),
        lambda: own_number({"VC_TASK_INDEX": "x"}, 2),
        lambda: own_number({}, 2),
        lambda: check_size({"MA_NUM_HOSTS": "3"}, nodes, 0),
        lambda: check_size({"VC_WORKER_NUM": "3"}, nodes, 0),
        lambda: check_size({"MA_NUM_GPUS": "1"}, nodes, 0),
    ):
        with pytest.raises(StartFailed):
            wrong()
    told: list[str] = []
    with pytest.raises(StartFailed, match="1 of 2 workers"):
        wait_for_all(["localhost", "x.never.invalid"], 0.1, told.append)
    assert told == ["waiting for workers: 1 of 2 are up"]
    assert len({derived_port("r", attempt) for attempt in range(1, 9)}) > 1


def test_secrets_in_two_halves(tmp_path: Path) -> None:
    values = {"A": "é\n\0x" * 3000, "B": ""}
    sealed = seal(values)
    assert len(sealed.environment) > 1 and all(len(text) <= 4096 for text in sealed.environment.values())
    (tmp_path / "sealed-3").write_bytes(sealed.pad)
    assert unseal(str(tmp_path), {**sealed.environment, "OSTRAIN_ATTEMPT": "3"}) == values
    assert not (tmp_path / "sealed-3").exists() and unseal(str(tmp_path), {}) == {}
    (tmp_path / "sealed-3").write_bytes(os.urandom(len(sealed.pad)))
    with pytest.raises(StartFailed, match="cannot be put together") as caught:
        unseal(str(tmp_path), {**sealed.environment, "OSTRAIN_ATTEMPT": "3"})
    assert "é" not in str(caught.value.why)
    assert seal({"A": "x"}).environment != seal({"A": "x"}).environment and "x" * 9 not in repr(seal({"A": "x" * 9}))
    with pytest.raises(OstrainError, match="too large"):
        seal({"A": "x" * 70000})


def test_files_are_handed_over_in_order_and_removed_again(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    for name, text in {
        "logs/attempt-1/worker_0.log": "one\n", "metrics/rank-0.jsonl": "{}\n", "env.sh": "secret", "files/x": "big",
        "checkpoints/step-2/shard.safetensors": "w", "checkpoints/step-2/manifest.json": "{}",
        "checkpoints/step-4/shard.safetensors": "w", "checkpoints/.step-6.writing/shard.safetensors": "w",
        "agent/lock": "{}", "agent/state.json": "{}",
    }.items():  # fmt: skip
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text)
    both = Mirror(str(run), str(out), checkpoints=True, others=True)
    names = list(both.names())
    assert names.index("checkpoints/step-2/manifest.json") > names.index("checkpoints/step-2/shard.safetensors")
    assert both.one_pass()
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert found == ["agent/state.json", "checkpoints/step-2/manifest.json", "checkpoints/step-2/shard.safetensors",
                     "logs/attempt-1/worker_0.log", "metrics/rank-0.jsonl"]  # fmt: skip
    with open(run / "logs/attempt-1/worker_0.log", "a") as file:
        file.write("two\n")
    (run / "checkpoints/step-2/manifest.json").unlink()
    assert both.one_pass() and (out / "logs/attempt-1/worker_0.log").read_text() == "one\ntwo\n"
    assert not (out / "checkpoints/step-2").exists()
    assert restore(str(out), str(tmp_path / "new"), 1) and not restore(str(tmp_path / "none"), str(tmp_path / "new"), 1)
    assert (tmp_path / "new/logs/attempt-1-restart-1/worker_0.log").read_text() == "one\ntwo\n"


def test_a_target_that_cannot_be_written_does_not_end_anything(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/events.jsonl").write_text("{}\n")
    (tmp_path / "out").write_text("a file in the way")
    mirror = Mirror(str(tmp_path / "run"), str(tmp_path / "out"), others=True)
    assert not mirror.one_pass() and "events.jsonl" in mirror.problem
    (tmp_path / "out").unlink()
    assert mirror.one_pass() and (tmp_path / "out/events.jsonl").exists()


def test_what_goes_into_containers_needs_the_standard_library_of_python_3_8_only() -> None:
    room = Path(__file__).parents[2] / "cluster"
    for name in STARTERS:
        tree = ast.parse((room / name).read_text(), feature_version=(3, 8))
        for node in ast.walk(tree):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in names:
                assert module.split(".")[0] in sys.stdlib_module_names or f"{module.split('.')[-1]}.py" in STARTERS, (
                    module
                )

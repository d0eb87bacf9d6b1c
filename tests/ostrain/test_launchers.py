"""mpirun and rank-table starts, run for real with toy workers: who each is told it is, and who ends with whom."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.ostrain.launch_helpers import ToyNode, pids_of
from tests.ostrain.spec_helpers import INVENTORY, compiled, write_inventory, write_job
from tests.ostrain.test_compiler import HOSTILE

TWO = "name: j\ncluster: duo\nnodes: 2\ndevices_per_node: 2\n"
ONE = "name: j\ncluster: duo\nnodes: 1\ndevices_per_node: 2\n"
# What would make MindSpore count other ranks than the launcher does.
STRAY = {"RANK_TABLE_FILE": "/old", "RANK_ID": "9", "MS_ROLE": "MS_SCHED", "OMPI_COMM_WORLD_RANK": "7",
         "ASCEND_RT_VISIBLE_DEVICES": "3", "MS_NODE_ID": "5", "OSTRAIN_LOCAL_RANK": "4"}  # fmt: skip


@pytest.fixture
def toy(tmp_path: Path) -> ToyNode:
    return ToyNode(tmp_path)


def stage(
    toy: ToyNode, text: str, *, head: str = TWO, device: str = "Ascend", devices: str = "8", node: int = 0
) -> None:
    inventory = INVENTORY.replace("/opt/py/bin/python", f"'{sys.executable}'").replace(
        "devices: 8", f"devices: {devices}"
    )
    write_inventory(toy.folder, inventory.replace("device: Ascend", f"device: {device}"))
    toy.stage(compiled(write_job(toy.folder, text, head=head))[1].nodes[node])


def who(environ: dict[str, str]) -> dict[str, str]:
    """The variables that say who a worker is and whom it meets where."""
    names = ("RANK_ID", "RANK_SIZE", "DEVICE_ID", "RANK_TABLE_FILE", "ASCEND_RT_VISIBLE_DEVICES", "OSTRAIN_LOCAL_RANK")
    return {name: value for name, value in environ.items() if name in names or name.startswith("MS_")}


CLUSTER = {"MS_SCHED_HOST": "192.0.2.1", "MS_SCHED_PORT": "20999", "MS_WORKER_NUM": "4", "MS_TOPO_TIMEOUT": "600",
           "RANK_SIZE": "4", "ASCEND_RT_VISIBLE_DEVICES": "4,5"}  # fmt: skip


def test_mpirun_tells_the_workers_of_the_first_node_and_its_scheduler(toy: ToyNode) -> None:
    stage(toy, "launcher: mpirun\nenv: {T: {secret: tok}}\n", devices="[4, 5, 6, 7]")
    out, _ = toy.launch(T="s3cr'et", SLURM_JOB_ID="5", SLURM_NODELIST="a,b", SLURM_JOB_NUM_NODES="2", **STRAY)
    assert "devices 4,5 of this node are 0, 1" in out
    wanted = [("0", "0"), ("1", "1")]
    for rank, device in wanted:
        assert who(toy.environ(rank)) == {
            **CLUSTER, "RANK_ID": rank, "DEVICE_ID": device, "OSTRAIN_LOCAL_RANK": device,
            "MS_ROLE": "MS_WORKER", "MS_NODE_ID": rank,
        }  # fmt: skip
    assert who(toy.environ("scheduler")) == {**CLUSTER, "RANK_ID": "0", "MS_ROLE": "MS_SCHED"}
    for told in toy.seen().values():
        assert not [name for name in told["environ"] if name.startswith(("OMPI_", "PMIX_", "PRTE_"))]
        assert told["environ"]["T"] == "s3cr'et" and "s3cr" not in json.dumps(told["above"])
        assert (told["cwd"], told["argv"]) == (str(toy.run_dir), ["--config", "train.yaml"])
    records = toy.records()
    assert sorted(records) == ["rank-0", "rank-1", "scheduler"]
    assert all(record["exit_code"] == 0 for record in records.values())
    logs = toy.logs()
    assert {name: text.strip() for name, text in logs.items()} == {
        "scheduler.log": "hello from scheduler", "worker_0.log": "hello from 0", "worker_1.log": "hello from 1"
    }  # fmt: skip


def test_mpirun_of_the_second_node_has_no_scheduler_and_every_value_arrives(toy: ToyNode) -> None:
    text = "launcher: mpirun\nenv:\n" + "".join(f"  {key}: {json.dumps(value)}\n" for key, value in HOSTILE.items())
    stage(toy, text + '  local: "1"\n  rank: "2"\n  EXPANDED: {expand: "$HOME/l:$TILDE"}\n', device="CPU", node=1)
    toy.launch(OSTRAIN_MASTER_ADDRESS="localhost")
    assert sorted(toy.seen()) == ["2", "3"] and sorted(toy.logs()) == ["worker_2.log", "worker_3.log"]
    environ = toy.environ("3")
    assert {key: environ.get(key) for key in HOSTILE} == HOSTILE
    assert (environ["local"], environ["rank"]) == ("1", "2")
    assert environ["EXPANDED"] == f"{toy.folder}/l:{HOSTILE['TILDE']}"
    assert environ["MS_SCHED_HOST"] in ("127.0.0.1", "::1") and environ["RANK_ID"] == "3"
    assert "ASCEND_RT_VISIBLE_DEVICES" not in environ and int(environ["OMP_NUM_THREADS"]) >= 1


def test_cores_stay_free_under_mpirun_on_cpus(toy: ToyNode) -> None:
    """Open MPI by itself binds each of two workers to one core."""
    stage(toy, "launcher: mpirun\n", head=ONE, device="CPU")
    toy.launch()
    cores = toy.seen()
    assert cores["0"]["cores"] == cores["1"]["cores"] == sorted(os.sched_getaffinity(0))


@pytest.mark.parametrize("launcher", ["mpirun", "rank_table"])
def test_the_first_worker_that_fails_ends_the_others_and_gives_the_exit_code(toy: ToyNode, launcher: str) -> None:
    stage(toy, f"launcher: {launcher}\n", head=ONE, device="CPU")
    began = time.monotonic()
    toy.launch(code=66, END="1/66")
    assert time.monotonic() - began < 30
    records = toy.records()
    assert (records["rank-1"]["exit_code"], records["rank-0"]["signal"]) == (66, "SIGTERM")
    assert pids_of(toy.run_dir) == []


@pytest.mark.parametrize("launcher", ["mpirun", "rank_table"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_launcher(toy: ToyNode, launcher: str, number: signal.Signals) -> None:
    stage(toy, f"launcher: {launcher}\n", head=ONE, device="CPU")
    process = toy.start(END="*/wait")
    deadline = time.monotonic() + 30
    while len(toy.seen()) < (3 if launcher == "mpirun" else 2):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode != 0
    while pids_of(toy.run_dir):
        assert time.monotonic() < deadline + 30, "workers outlived the launcher"
        time.sleep(0.05)


def test_rank_table_start_keeps_physical_ids(toy: ToyNode) -> None:
    stage(toy, "launcher: rank_table\n", head=ONE, devices="[6, 4]")
    toy.launch(**STRAY)
    table = json.loads((toy.run_dir / "hccl.json").read_text())
    devices = [entry["device_id"] for entry in table["server_list"][0]["device"]]
    assert devices == ["6", "4"] and table["server_list"][0]["server_id"] == "192.0.2.1"
    for rank, device in enumerate(devices):
        assert who(toy.environ(str(rank))) == {
            "RANK_ID": str(rank), "RANK_SIZE": "2", "DEVICE_ID": device, "OSTRAIN_LOCAL_RANK": str(rank),
            "RANK_TABLE_FILE": f"{toy.run_dir}/hccl.json",
        }  # fmt: skip
    assert sorted(toy.logs()) == ["worker_0.log", "worker_1.log"]


def test_rank_table_start_of_the_second_node(toy: ToyNode) -> None:
    stage(toy, "launcher: rank_table\n", device="CPU", node=1)
    toy.launch()
    assert who(toy.environ("3")) == {
        "RANK_ID": "3", "RANK_SIZE": "4", "DEVICE_ID": "1", "OSTRAIN_LOCAL_RANK": "1",
        "RANK_TABLE_FILE": f"{toy.run_dir}/hccl.json",
    }  # fmt: skip


TOPOLOGY = """#!/bin/sh
[ "$*" = "info -t topo" ] || exit 1
printf '\\tNPU0\\tNPU1\\tNPU2\\tNPU3\\tCPU Affinity\\n'
printf 'NPU0\\tX\\tHCCS\\tHCCS\\tHCCS\\t144-147\\nNPU1\\tHCCS\\tX\\tHCCS\\tHCCS\\t144-147\\n'
printf 'NPU2\\tHCCS\\tHCCS\\tX\\tHCCS\\t0-2,8\\nNPU3\\tHCCS\\tHCCS\\tHCCS\\tX\\t0-2,8\\nLegend:\\n  X = Self\\n'
"""
# Answers for a machine with 192 cores, and tells which cores it was to bind to, instead of binding.
TASKSET = """#!/bin/sh
case "$1" in
  -cp) echo "pid $2's current affinity list: {allowed}" ;;
  -c) shift; BOUND=$1; export BOUND; shift; exec "$@" ;;
esac
"""


ALONE = "#!/bin/sh\nexit 1\n"


@pytest.mark.parametrize(
    ("launcher", "devices", "allowed", "topology", "wanted"),
    [
        ("rank_table", "[0, 1]", "0-191", TOPOLOGY, ["144,145", "146,147"]),
        ("mpirun", "[0, 2]", "0-191", TOPOLOGY, ["144,145,146,147", "0,1,2,8"]),
        ("rank_table", "[3, 2]", "0-1,8-191", TOPOLOGY, ["0", "1,8"]),
        ("rank_table", "[0, 1]", "0-4", TOPOLOGY, ["0,1", "2,3,4"]),  # none of the near ones may be used
        ("rank_table", "[0, 1]", "7,9", ALONE, ["7", "9"]),
        ("rank_table", "[0, 1]", "7", ALONE, [None, None]),
    ],
)
def test_workers_are_bound_to_the_cores_near_their_devices(
    toy: ToyNode, launcher: str, devices: str, allowed: str, topology: str, wanted: list[str | None]
) -> None:
    stage(toy, f"launcher: {launcher}\n", head=ONE, devices=devices)
    toy.program("npu-smi", topology)
    toy.program("taskset", TASKSET.format(allowed=allowed))
    toy.launch()
    assert [toy.environ(rank).get("BOUND") for rank in "01"] == wanted
    assert "scheduler" not in toy.seen() or "BOUND" not in toy.environ("scheduler")


def test_binding_may_be_off(toy: ToyNode) -> None:
    stage(toy, "launcher: rank_table\nbind_cores: off\n", head=ONE)
    toy.program("taskset", TASKSET.format(allowed="0-191"))
    toy.launch()
    assert "BOUND" not in toy.environ("0") and not (toy.run_dir / "bind.sh").exists()


@pytest.mark.parametrize("folder", ["cann", "ascend-toolkit"])
def test_cann_is_sourced_where_nobody_has(toy: ToyNode, folder: str) -> None:
    stage(toy, "launcher: rank_table\n", head=ONE)
    script = toy.folder / "Ascend" / folder / "set_env.sh"
    script.parent.mkdir(parents=True)
    script.write_text('export ASCEND_HOME_PATH="$HOME/Ascend" FROM=${FROM-}s; cd /; false\n')
    toy.launch()
    assert (toy.environ("0")["ASCEND_HOME_PATH"], toy.environ("0")["FROM"]) == (f"{toy.folder}/Ascend", "s")
    toy.launch(ASCEND_HOME_PATH="/mine")
    assert toy.environ("0")["ASCEND_HOME_PATH"] == "/mine"


@pytest.mark.parametrize(
    ("version", "words"),
    [("exit 1", "no mpirun on PATH; install Open MPI"), ("echo 'HYDRA build details:'", "mpirun is not Open MPI")],
)
def test_another_mpi_is_named(toy: ToyNode, version: str, words: str) -> None:
    stage(toy, "launcher: mpirun\n", device="CPU")
    toy.program("mpirun", f"#!/bin/sh\n{version}\n")
    assert words in toy.launch(code=127)[1]


def test_a_first_node_that_nobody_knows_is_named(toy: ToyNode) -> None:
    stage(toy, "launcher: mpirun\n", device="CPU")
    _, errors = toy.launch(code=1, OSTRAIN_MASTER_ADDRESS="no-such-host.invalid")
    assert "does not know the first one, no-such-host.invalid" in errors


def test_an_old_msrun_is_not_asked_for_what_it_lacks(toy: ToyNode) -> None:
    stage(toy, "", head=ONE, device="CPU")
    python = toy.folder / "old" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\ncase "$2" in *metadata*) echo 2.4.10 ;; *) exec {sys.executable} "$@" ;; esac\n')
    python.chmod(0o755)
    (python.parent / "msrun").write_text('#!/bin/sh\necho "$@"\n')
    (python.parent / "msrun").chmod(0o755)
    launch = (toy.run_dir / "launch.sh").read_text()
    (toy.run_dir / "launch.sh").write_text(
        launch.replace(f"OSTRAIN_PYTHON={sys.executable}", f"OSTRAIN_PYTHON={python}")
    )
    out, _ = toy.launch()
    assert "--worker_num=2" in out and "tail_worker_log" not in out


@pytest.mark.parametrize("launcher", ["msrun", "mpirun", "rank_table"])
@pytest.mark.parametrize("device", ["Ascend", "CPU"])
def test_shellcheck_has_nothing_to_say(toy: ToyNode, launcher: str, device: str) -> None:
    text = f'launcher: {launcher}\nsetup: [/opt/set_env.sh]\nenv: {{A: "it\'s", T: {{secret: tok}}}}\n'
    stage(toy, text, head=ONE, device=device)
    # Sourced files are not followed: they are checked beside it, or are the node's own.
    command = ["shellcheck", "--shell=bash", "--exclude=SC1090,SC1091", *sorted(map(str, toy.run_dir.glob("*.sh")))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout

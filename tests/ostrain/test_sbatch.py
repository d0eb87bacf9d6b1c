"""Jobs on Slurm as they are compiled: the script, its options, what is refused and where."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from ostrain.cli.submit import compiled as submittable
from ostrain.plan import LaunchPlan
from ostrain.sbatch import slurm_time
from ostrain.templating import option
from tests.ostrain.spec_helpers import compiled, place, the_problem, write_inventory, write_job
from tests.ostrain.test_render import first_and_last, golden

INVENTORY = """name: duo
backend: slurm
device: Ascend
defaults: {devices: 8, python: /opt/py/bin/python, root: /shared/ostrain, interface: eth0}
slurm:
  partition: npu
  account: video
  qos: long
  time: 2d
  gres: npu:ascend910b:8
  cpus: 192
  constraint: a2&rack1
  requeue: true
  options: {mem: "0", exclude: "n[1-3,7]", contiguous: ""}
"""
HEAD = "name: j\ncluster: duo\nnodes: 2\ndevices_per_node: 4\n"


def script(plan: LaunchPlan) -> str:
    assert [file.path for file in plan.nodes[1].files].count("sbatch.sh") == 0
    return next(file.text for file in plan.nodes[0].files if file.path == "sbatch.sh")


def options(plan: LaunchPlan) -> list[str]:
    return re.findall(r"^#SBATCH --(\S+)$", script(plan), re.MULTILINE)


def test_golden_sbatch(tmp_path: Path) -> None:
    write_inventory(tmp_path, INVENTORY)
    _, plan = compiled(write_job(tmp_path, head=HEAD))
    golden("slurm.txt", first_and_last(plan, ".sh"))


def test_the_script_is_one_that_bash_and_shellcheck_take(tmp_path: Path) -> None:
    write_inventory(tmp_path, INVENTORY)
    path = tmp_path / "sbatch.sh"
    path.write_text(script(compiled(write_job(tmp_path, "python: '~/my py/bin/python'\n", head=HEAD))[1]))
    for argv in (["bash", "-n", str(path)], ["shellcheck", "--shell=bash", str(path)]):
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def test_options_follow_from_job_and_inventory(tmp_path: Path) -> None:
    write_inventory(tmp_path, "name: duo\nbackend: slurm\ndevice: Ascend\nslurm: {warning: 0, exclusive: false}\n")
    job = write_job(tmp_path, head=HEAD)
    found = options(compiled(job)[1])
    assert "gres=npu:4" in found and "no-requeue" in found and "export=NONE" in found and "nodes=2" in found
    assert not [one for one in found if one.startswith(("signal", "exclusive", "time", "partition"))]
    write_inventory(
        tmp_path, "name: duo\nbackend: slurm\ndevice: CPU\nslurm: {gres: 'npu:2,tmp:1', exclusive: false}\n"
    )
    assert "gres=npu:2,tmp:1" in options(compiled(job, "devices_per_node=1")[1])


def test_attempts_wait_in_the_queue_and_need_no_supervisor(tmp_path: Path) -> None:
    write_inventory(tmp_path, INVENTORY)
    job = write_job(tmp_path, "restart: {max: 3}\n", head=HEAD)
    plan = compiled(job)[1]
    assert plan.service["attempts"] == 4 and plan.service["interface"] == "eth0"
    assert "worker_killed" in plan.service["retry"] and "bad_config" not in plan.service["retry"]
    assert LaunchPlan.from_json(plan.to_json()) == plan
    assert not submittable(job, ()).restart
    assert "attempts" not in compiled(job, "restart.max=0")[1].service
    write_inventory(tmp_path, INVENTORY + "  chain: false\n")
    assert "the inventory says `chain: false`" in the_problem(job)


@pytest.mark.parametrize(
    ("old", "new", "row_column_word", "words"),
    [
        ("partition: npu", "partition: n pu", (6, 14, "n pu"), "no name that Slurm knows"),
        ("account: video", 'account: "a\\nb"', (7, 12, '"a\\nb"'), "control character"),
        ("gres: npu:ascend910b:8", "gres: npu 8", (10, 9, "npu 8"), "no generic resource"),
        ("constraint: a2&rack1", "constraint: a2 rack1", (12, 15, "a2 rack1"), "that sbatch would take apart"),
        ("time: 2d", "time: long", (9, 9, "long"), "not a duration"),
        ("cpus: 192", "cpus: 0", (11, 9, "0"), "at least 1"),
        ('mem: "0"', 'memory: "0"', (14, 12, '{memory: "0", exclude: "n[1-3,7]", contiguous: ""}'), "--memory is not"),
        ('mem: "0"', 'output: "x"', (14, 12, '{output: "x", exclude: "n[1-3,7]", contiguous: ""}'), "run directory"),
        ('mem: "0"', 'mem: ""', (14, 12, '{mem: "", exclude: "n[1-3,7]", contiguous: ""}'), "--mem needs a value"),
        ("partition: npu", "partitoin: npu", (6, 3, "partitoin"), "did you mean 'partition'?"),
        ("backend: slurm", "backend: ssh", (5, 1, "slurm"), "say `backend: slurm`"),
    ],
)  # fmt: skip
def test_mistakes_have_places(
    tmp_path: Path, old: str, new: str, row_column_word: tuple[int, int, str], words: str
) -> None:
    text = INVENTORY.replace(old, new)
    if new == "backend: ssh":
        text += "nodes: [{name: a, host: 192.0.2.1}, {name: b, host: 192.0.2.2}]\n"
        text = text.replace(", interface: eth0", "")
    write_inventory(tmp_path, text)
    problem = the_problem(write_job(tmp_path, head=HEAD))
    assert words in problem
    assert place(problem) == row_column_word


@pytest.mark.parametrize(
    ("text", "head", "words"),
    [
        ("launcher: rank_table\n", HEAD, "a rank table lists addresses"),
        ("", HEAD.replace("devices_per_node: 4", "devices_per_node: 16"), "16 devices on every node, but"),
    ],
)
def test_what_slurm_cannot_do_is_refused_in_the_job(tmp_path: Path, text: str, head: str, words: str) -> None:
    write_inventory(tmp_path, INVENTORY.replace("devices: 8", "devices: 16"))
    assert words in the_problem(write_job(tmp_path, text, head=head))


def test_times_and_words_of_the_header() -> None:
    assert [slurm_time(one) for one in (1, 60, 5400, 86400, 200000)] == [
        "00:01:00", "00:01:00", "01:30:00", "1-00:00:00", "2-07:34:00"
    ]  # fmt: skip
    for hostile in ("a b", "a#b", 'a"b', "a\\b", "a\nb", "$(x)", "`x`", "é", ""):
        with pytest.raises(ValueError, match="#SBATCH"):
            option(hostile)
    assert json.dumps(option("n[1-3]&a2|b*2")) == '"n[1-3]&a2|b*2"'

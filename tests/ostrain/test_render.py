"""``ostrain render``: golden texts, the folder it writes, its JSON."""

from __future__ import annotations

import difflib
import json
import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import ostrain.spec.load
from bench.bench_ranktable import transcript
from cluster.inventory import local_inventory
from ostrain.cli.render import render
from ostrain.errors import OstrainError
from ostrain.plan import LaunchPlan
from ostrain.render import distinct_files, plan_text, write_plan
from tests.ostrain.spec_helpers import INVENTORY, compiled, write_inventory, write_job
from tests.ostrain.test_compiler import HOSTILE

GOLDEN = Path(__file__).parent.parent / "golden"
HEAD = "name: j\ncluster: duo\nnodes: 2\ndevices_per_node: 8\n"


@pytest.fixture
def fixed_local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``local`` as on a machine without NPUs whose ostrain runs under /opt/py."""
    monkeypatch.setattr(
        ostrain.spec.load, "local_inventory", lambda *_: local_inventory("/state", "/opt/py/bin/python", tmp_path)
    )


def hostile_job(folder: Path) -> Path:
    text = "env:\n" + "".join(f"  {key}: {json.dumps(value)}\n" for key, value in HOSTILE.items())
    text += '  EXPANDED: {expand: "$HOME/l:${SPACES}:$UNSET$(x)`y`"}\n  TOKEN: {secret: my.token}\n'
    text += "setup: ['/opt/my tools/set $env.sh', '~/a b.sh']\npython: '~/my py/bin/python'\nlayout: {sp: 2}\n"
    write_inventory(folder, INVENTORY.replace("devices: 8", "devices: [2, 3, 4, 5, 6, 7, 8, 9, 10], interface: eth0"))
    return write_job(folder, text, head=HEAD)


def golden(name: str, text: str) -> None:
    """Compare with tests/golden/NAME; OSTRAIN_GOLDEN=write writes it, for a person to look at the difference."""
    path = GOLDEN / name
    if os.environ.get("OSTRAIN_GOLDEN") == "write":
        path.write_bytes(text.encode())
    wanted = path.read_bytes().decode()
    lines = difflib.unified_diff(wanted.splitlines(), text.splitlines(), str(path), "now", lineterm="")
    assert wanted == text, "\n".join(lines)


def first_and_last(plan: LaunchPlan, suffix: str | tuple[str, ...] = "") -> str:
    """Files of the first and the last node; only those with ``suffix``, where a recipe's values do not matter."""
    parts = []
    for path, mode, nodes, text in distinct_files(plan):
        if {plan.nodes[0].name, plan.nodes[-1].name} & set(nodes) and path.endswith(suffix):
            parts.append(f"=== {path} {mode:04o} {' '.join(nodes)}\n{text}")
    return "".join(parts)


def test_golden_quickstart(fixed_local: None) -> None:
    _, plan = compiled(Path("quickstart"))
    golden("quickstart.txt", first_and_last(plan, ".sh"))


def test_golden_os12_stage3() -> None:
    _, plan = compiled(Path("os12_stage3"))
    golden("os12_stage3.txt", first_and_last(plan))


def test_golden_hostile_values(tmp_path: Path) -> None:
    _, plan = compiled(hostile_job(tmp_path))
    golden("hostile.txt", first_and_last(plan, ".sh"))


@pytest.mark.parametrize("launcher", ["msrun", "mpirun", "rank_table"])
@pytest.mark.parametrize("device", ["Ascend", "CPU"])
@pytest.mark.parametrize("nodes", [1, 2])
def test_golden_launchers(tmp_path: Path, launcher: str, device: str, nodes: int) -> None:
    said = tmp_path / "clusters" / "said"
    said.mkdir(parents=True)
    for number, node in enumerate("ab"):
        (said / f"{node}.txt").write_text(transcript(number, 8))
    inventory = INVENTORY.replace("device: Ascend", f"device: {device}\nfacts: said")
    write_inventory(tmp_path, inventory.replace("devices: 8", "devices: [4, 5, 6, 7], interface: eth1"))
    text = f'launcher: {launcher}\nenv: {{A: "it\'s", HF: {{secret: tok}}, P: {{expand: "$HOME/x"}}}}\n'
    text += "setup: [/opt/set_env.sh]\n"
    head = f"name: j\ncluster: duo\nnodes: {nodes}\ndevices_per_node: 2\n"
    _, plan = compiled(write_job(tmp_path, text, head=head))
    golden(f"launchers/{launcher}-{device.lower()}-{nodes}.txt", first_and_last(plan, (".sh", ".json")))


def test_text_shows_shared_files_once_and_says_where_they_are(tmp_path: Path) -> None:
    write_inventory(tmp_path)
    _, plan = compiled(write_job(tmp_path, "env: {T: {secret: tok}}\nfiles: {c: x}\n", head=HEAD))
    text = plan_text(plan)
    assert text.count("═══ train.yaml") == 1 and "env.sh (mode 0600) on every node" in text
    assert "launch.sh (mode 0755) on a " in text and "launch.sh (mode 0755) on b " in text
    assert f"files/c <- {tmp_path}/x" in text and "T <- tok" in text


def test_command_prints_text_or_json_or_writes(tmp_path: Path) -> None:
    write_inventory(tmp_path)
    job = str(write_job(tmp_path, head=HEAD))
    run = CliRunner().invoke
    assert "═══ launch.sh" in run(render, [job], standalone_mode=False).output
    result = run(render, [job, "--json", "--set", "train.steps=9"], standalone_mode=False)
    assert LaunchPlan.from_json(result.output) == compiled(Path(job), "train.steps=9")[1]
    result = run(render, [job, "-o", str(tmp_path / "out")], standalone_mode=False)
    assert result.exit_code == 0 and result.stdout == ""
    files = {
        str(path.relative_to(tmp_path / "out")): f"{path.stat().st_mode & 0o777:o}"
        for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name[0] != "."
    }  # fmt: skip
    modes = {"launch.sh": "755", "env.sh": "600", "train.yaml": "644"}
    assert files == {f"{node}/{name}": mode for node in "ab" for name, mode in modes.items()}


def test_written_files_are_those_of_the_plan_and_replace_only_their_own(tmp_path: Path) -> None:
    job, out = hostile_job(tmp_path), tmp_path / "out"
    _, plan = compiled(job)
    write_plan(plan, out)
    for node in plan.nodes:
        for file in node.files:
            assert (out / node.name / file.path).read_bytes() == file.text.encode()
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    write_plan(compiled(job, "nodes=1")[1], out)
    assert (out / "a").is_dir() and not (out / "b").exists() and (out / "notes.txt").exists()


def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    write_inventory(tmp_path)
    _, plan = compiled(write_job(tmp_path, head=HEAD))
    with pytest.raises(OstrainError, match="did not write") as caught:
        write_plan(plan, tmp_path)
    assert caught.value.exit_code == 2 and not (tmp_path / "a").exists()
    with pytest.raises(OstrainError, match="cannot write to"):
        write_plan(plan, tmp_path / "job.yaml")


def test_a_render_takes_well_under_a_second() -> None:
    compiled(Path("os12_stage3"))
    start = time.perf_counter()
    plan_text(compiled(Path("os12_stage3"))[1])
    assert time.perf_counter() - start < 1.0

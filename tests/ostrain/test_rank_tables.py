"""The rank table of a job: from its file, from what nodes said, from the inventory alone; and what does not fit it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.bench_ranktable import transcript
from ostrain.errors import SpecError
from ostrain.plan import SHARED_FROM, LaunchPlan, PlanFile
from ostrain.ranktable import check_data
from ostrain.spec import check_runnable, load_job
from ostrain.spec.rank_tables import plain_table, remade_table
from tests.ostrain.ranktable_helpers import SAMPLES
from tests.ostrain.spec_helpers import INVENTORY, compiled, place, problems, the_problem, write_inventory, write_job

HEAD = "name: j\ncluster: duo\nnodes: 2\ndevices_per_node: 2\nlauncher: rank_table\n"
FACTS = INVENTORY.replace("defaults:", "facts: said\ndefaults:")


def good_table() -> dict[str, Any]:
    """Of both nodes with devices 0 and 1, addresses in one subnet."""
    data = plain_table([("192.0.2.1", (0, 1)), ("192.0.2.2", (0, 1))])
    for number, device in enumerate(device for server in data["server_list"] for device in server["device"]):
        device["device_ip"] = f"10.20.0.{number + 10}"
    return data


def with_table(folder: Path, data: Any, text: str = "") -> Path:
    write_inventory(folder)
    (folder / "t.json").write_text(data if isinstance(data, str) else json.dumps(data, indent=4))
    return write_job(folder, text + "rank_table: t.json\n", head=HEAD)


def with_facts(folder: Path, names: tuple[str, ...] = ("a", "b"), inventory: str = FACTS) -> Path:
    write_inventory(folder, inventory)
    said = folder / "clusters" / "said"
    said.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        (said / f"{name}.txt").write_text(transcript(number, 8))
    return write_job(folder, head=HEAD)


def files(plan: LaunchPlan, node: int = 0) -> dict[str, PlanFile]:
    return {file.path: file for file in plan.nodes[node].files}


def test_a_table_that_fits_goes_to_every_node_as_it_is(tmp_path: Path) -> None:
    text = json.dumps(good_table())
    _, plan = compiled(with_table(tmp_path, text))
    assert [files(plan, node)["hccl.json"].text for node in (0, 1)] == [text, text]
    assert [node.devices for node in plan.nodes] == [(0, 1), (0, 1)]
    assert sorted(files(plan)) == ["bind.sh", "env.sh", "hccl.json", "launch.sh", "train.yaml", "worker.sh"]
    assert plan.checks["programs"] == ["bash"]


def test_ranks_keep_the_devices_the_table_gives_them(tmp_path: Path) -> None:
    data = good_table()
    first, second = data["server_list"][1]["device"]
    first["device_id"], second["device_id"], first["rank_id"], second["rank_id"] = "5", "3", "3", "2"
    _, plan = compiled(with_table(tmp_path, data))
    assert [node.devices for node in plan.nodes] == [(0, 1), (3, 5)]
    assert "OSTRAIN_DEVICES=3,5" in files(plan, 1)["launch.sh"].text


def test_a_table_of_version_2_is_laid_out_by_rank(tmp_path: Path) -> None:
    data = json.loads((SAMPLES / "version-2.0.json").read_text())
    by_rank = {rank["rank_id"]: rank["device_id"] for rank in data["rank_list"]}
    head = HEAD.replace("nodes: 2", "nodes: 1").replace("devices_per_node: 2", f"devices_per_node: {len(by_rank)}")
    write_inventory(tmp_path)
    (tmp_path / "t.json").write_text(json.dumps(data))
    _, plan = compiled(write_job(tmp_path, "rank_table: t.json\n", head=head))
    assert plan.nodes[0].devices == tuple(by_rank[rank] for rank in sorted(by_rank))


def changed(change: str) -> Any:
    data = good_table()
    one, other = data["server_list"]
    match change:
        case "other ranks":
            data = plain_table([("192.0.2.1", (0, 1, 2, 3))])
        case "other servers":
            data["server_list"] = data["server_list"][:1]
            data["server_count"] = "1"
        case "other order":
            one["server_id"], other["server_id"] = other["server_id"], one["server_id"]
        case "unknown server":
            other["server_id"] = "192.0.2.9"
        case "other device":
            other["device"][0]["device_id"] = "9"
        case "twice":
            other["device"][1]["device_ip"] = one["device"][0]["device_ip"]
        case "numbers":
            for server in data["server_list"]:
                for device in server["device"]:
                    device["rank_id"] = int(device["rank_id"])
    return data


@pytest.mark.parametrize(
    ("change", "word", "words"),
    [
        (
            "other ranks",
            '"server_list"',
            "the table has 4 ranks on 1 server, the job 4 on 2 nodes; `ostrain ranktable",
        ),
        ("other servers", '"server_list"', "the table has 2 ranks on 1 server, the job 4 on 2 nodes"),
        ("other order", '"192.0.2.2"', 'server "192.0.2.2" holds rank 0, which the job places on a'),
        ("unknown server", '"192.0.2.9"', 'server "192.0.2.9" is no node of the job; b is 192.0.2.2 or b'),
        ("other device", "{", "device 9 of b is not among its `devices`"),
        ("twice", '"10.20.0.10"', "(HCCL: EI0014)"),
    ],
)
def test_what_does_not_fit_is_told_at_its_place_in_the_table(
    tmp_path: Path, change: str, word: str, words: str
) -> None:
    problem = the_problem(with_table(tmp_path, changed(change)))
    assert words in problem and problem.startswith(f"{tmp_path}/t.json:") and place(problem)[2].startswith(word)


def test_three_of_many_mistakes_are_shown(tmp_path: Path) -> None:
    found = problems(with_table(tmp_path, changed("numbers")))
    assert len(found) == 3 and "(and 1 more; `ostrain ranktable check" in found[-1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "the file ends before the table does"),
        ("[]", "the file holds a list"),
    ],
)
def test_what_is_no_table_is_a_problem_of_the_job(tmp_path: Path, text: str, words: str) -> None:
    assert any(words in problem for problem in problems(with_table(tmp_path, text)))


def test_the_old_format_has_to_be_converted(tmp_path: Path) -> None:
    sample = SAMPLES.parent / "accepted/group_format.json"
    problem = the_problem(with_table(tmp_path, sample.read_text()))
    assert "`ostrain ranktable convert FILE --to 1.0`" in problem and place(problem)[2].startswith('"group_list"')


def test_a_missing_file_is_told_in_the_job(tmp_path: Path) -> None:
    write_inventory(tmp_path)
    problem = the_problem(write_job(tmp_path, "rank_table: nowhere.json\n", head=HEAD))
    assert "nowhere.json cannot be read: there is no such file" in problem and place(problem)[2] == "nowhere.json"


def test_a_table_is_made_of_what_the_nodes_said(tmp_path: Path) -> None:
    _, plan = compiled(with_facts(tmp_path))
    data = json.loads(files(plan)["hccl.json"].text)
    assert [server["server_id"] for server in data["server_list"]] == ["192.0.2.1", "192.0.2.2"]
    assert [[device["device_ip"] for device in server["device"]] for server in data["server_list"]] == [
        ["10.20.0.1", "10.20.0.2"], ["10.20.0.9", "10.20.0.10"]
    ]  # fmt: skip
    assert check_data(data).good


def test_nodes_that_said_nothing_or_something_wrong_are_told_at_the_facts(tmp_path: Path) -> None:
    problem = the_problem(with_facts(tmp_path, ("a",)))
    assert "holds nothing of b; `ostrain ranktable make --cluster duo --save-facts" in problem
    assert place(problem)[2] == "said" and "duo.yaml" in problem
    said = tmp_path / "clusters/said"
    (said / "b.txt").write_text((said / "a.txt").read_text())
    problem = problems(tmp_path / "job.yaml")[0]
    assert "10.20.0.1" in problem and place(problem)[2] == "said"


def test_several_nodes_with_npus_need_addresses(tmp_path: Path) -> None:
    write_inventory(tmp_path)
    problem = the_problem(write_job(tmp_path, head=HEAD))
    assert place(problem)[2] == "rank_table" and "ostrain ranktable make --cluster duo --nodes 2 -o FILE" in problem
    assert compiled(tmp_path / "job.yaml", "nodes=1")[1].world == 2


def test_cpus_render_a_table_but_do_not_start_by_it(tmp_path: Path) -> None:
    write_inventory(tmp_path, INVENTORY.replace("device: Ascend", "device: CPU"))
    loaded, plan = compiled(write_job(tmp_path, head=HEAD))
    data = json.loads(files(plan)["hccl.json"].text)
    assert {finding.rule.name for finding in check_data(data).findings.errors} == {"ip_missing"}
    (problem,) = [text for text in check_runnable(loaded) if "rank table" in text]
    assert "MindSpore reads rank tables on NPUs alone" in problem and place(problem)[2] == "rank_table"


def test_a_run_that_moves_gets_a_table_of_its_new_nodes(tmp_path: Path) -> None:
    loaded = load_job(with_facts(tmp_path))
    moved = loaded.inventory.model_copy(update={"nodes": loaded.inventory.nodes[::-1]})
    table = remade_table(loaded.job, moved, loaded.path)
    assert table is not None
    assert [one["server_id"] for one in json.loads(table.text)["server_list"]] == ["192.0.2.2", "192.0.2.1"]
    fixed = load_job(with_table(tmp_path, good_table()))
    moved = fixed.inventory.model_copy(update={"nodes": fixed.inventory.nodes[::-1]})
    with pytest.raises(SpecError, match="no rank table for the nodes"):
        remade_table(fixed.job, moved, fixed.path)
    assert remade_table(fixed.job.model_copy(update={"launcher": "msrun"}), moved, fixed.path) is None


def test_a_large_table_stands_once_in_a_stored_plan(tmp_path: Path) -> None:
    _, plan = compiled(with_table(tmp_path, good_table()))
    assert '"shared"' not in plan.to_json()
    large = PlanFile("hccl.json", "x" * SHARED_FROM)
    plan = replace(plan, nodes=tuple(replace(node, files=(*node.files, large)) for node in plan.nodes))
    text = plan.to_json()
    assert text.count(large.text) == 1 and LaunchPlan.from_json(text) == plan

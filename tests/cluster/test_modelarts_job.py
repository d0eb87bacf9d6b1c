"""The section ``modelarts:``, the request it makes, the file for ma-cli."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from cluster.modelarts_job import create_body, job_name
from ostrain.cli.render import render
from ostrain.plan import LaunchPlan
from tests.cluster.modelarts_service import SCHEMA, schema_problems
from tests.ostrain.spec_helpers import TRAIN, compiled, place, problems, the_problem, write_inventory, write_job
from tests.ostrain.test_render import first_and_last, golden

INVENTORY = """name: cloud
backend: modelarts
defaults: {devices: 8, python: /opt/py/bin/python}
modelarts:
  region: cn-north-4
  project_id: p1
  flavor_id: f1
  image: org/ms:1
  obs: obs://bucket-a/keep/here
"""
HEAD = "name: j.b\ncluster: duo\nnodes: 2\ndevices_per_node: 8\n"
ALL = """  pool_id: pool-1
  priority: 2
  workspace_id: w9
  logs: obs://bucket-b/logs
  max_hours: 5
  auto_restart: 3
  volumes:
    - {at: /mnt/sfs, nfs: "192.0.2.5:/share", read_only: true}
    - {at: /mnt/pfs, pfs: obs://fs-1/a}
    - {at: /mnt/obs, obs: obs://bucket-c/a/b}
"""


def plan(folder: Path, more: str = "", job: str = "", **changes: str) -> LaunchPlan:
    text = INVENTORY + more
    for old, new in changes.items():
        text = text.replace(f"  {old}: ", f"  {new}: ", 1) if new else "".join(
            line + "\n" for line in text.splitlines() if not line.startswith(f"  {old}: ")
        )  # fmt: skip
    write_inventory(folder, text)
    return compiled(write_job(folder, job, head=HEAD))[1]


def sdk_problems(value: Any, model: type, path: str = "body") -> list[str]:
    """Fields of a body that Huawei's own request models do not have."""
    import huaweicloudsdkmodelarts.v1 as sdk

    found = []
    names = {json_name: model.openapi_types[own] for own, json_name in model.attribute_map.items()}  # type: ignore[attr-defined]
    for key, part in value.items():
        if key not in names:
            found.append(f"{path}.{key}")
            continue
        kind = names[key]
        inner = kind[5:-1] if kind.startswith("list[") else kind
        below = getattr(sdk, inner, None)
        for one in part if isinstance(part, list) else [part]:
            if below is not None and isinstance(one, dict):
                found += sdk_problems(one, below, f"{path}.{key}")
    return found


@pytest.mark.parametrize("more", ["", ALL, "  mount: true\n"])
def test_requests_have_only_documented_fields_in_their_forms(tmp_path: Path, more: str) -> None:
    import huaweicloudsdkmodelarts.v1 as sdk

    body = create_body(plan(tmp_path, more), "run.1", 2, {"OSTRAIN_SEALED_0": "eA=="})
    assert schema_problems(SCHEMA, body) == [] and sdk_problems(body, sdk.Job) == []


def test_every_key_reaches_the_request(tmp_path: Path) -> None:
    body = create_body(plan(tmp_path, ALL), "run.1", 2, {})
    assert body["metadata"]["name"] == job_name("run.1", 2) and body["metadata"]["workspace_id"] == "w9"
    assert body["metadata"]["annotations"] == {"fault-tolerance/job-retry-num": "3"}
    assert body["algorithm"]["code_dir"] == "/bucket-a/keep/here/runs/run.1/code/"
    assert body["algorithm"]["environments"]["OSTRAIN_ATTEMPT"] == "2"
    spec = body["spec"]
    assert spec["resource"] == {"node_count": 2, "flavor_id": "f1", "pool_id": "pool-1"}
    assert spec["auto_stop"] == {"time_unit": "HOURS", "duration": 5} and spec["schedule_policy"] == {"priority": 2}
    assert spec["log_export_path"] == {"obs_url": "/bucket-b/logs/"}
    assert spec["volumes"] == [
        {"nfs": {"nfs_server_path": "192.0.2.5:/share", "local_path": "/mnt/sfs", "read_only": True}},
        {"pfs": {"pfs_path": "/fs-1/a/", "local_path": "/mnt/pfs"}},
        {"obs": {"obs_path": "/bucket-c/a/b/", "local_path": "/mnt/obs"}},
    ]


def test_a_mounted_file_system_needs_no_copies(tmp_path: Path) -> None:
    body = create_body(plan(tmp_path, "  mount: true\n"), "r", 1, {})
    mounted = body["spec"]["volumes"][0]["pfs"]
    assert mounted == {"pfs_path": "/bucket-a/keep/here/runs/r/out/", "local_path": "/mnt/ostrain"}
    assert body["algorithm"]["environments"]["OSTRAIN_OUTPUT"] == "/mnt/ostrain"
    assert "outputs" not in body["algorithm"] and "inputs" not in body["algorithm"]


def test_names_of_jobs_are_legal_and_nobody_elses() -> None:
    names = [job_name(run, attempt) for run in ("a.b", "a-b", "x" * 90, "x" * 91) for attempt in (1, 2)]
    assert len(set(names)) == len(names) and all(len(name) <= 64 and "." not in name for name in names)


@pytest.mark.parametrize(
    ("old", "new", "word", "words"),
    [
        ("region: cn-north-4", "region: north", "north", "not of the form cn-southwest-2"),
        ("image: org/ms:1", "image: org/ms", "org/ms", "organization/name:tag"),
        ("image: org/ms:1", "imag: org/ms:1", "imag", "did you mean 'image'?"),
        ("obs: obs://bucket-a/keep/here", "obs: s3://x/y", "s3://x/y", "obs://bucket/folder"),
        ("obs: obs://bucket-a/keep/here", "obs: obs://bucket-a/../x", "obs://bucket-a/../x", "obs://bucket/folder"),
        ("flavor_id: f1", "volumes: [{at: /home/ma-user/modelarts/x, obs: obs://b-1/x}]", "/home/ma-user/modelarts/x",
         "belongs to the platform"),
        ("backend: modelarts", "backend: ssh", "modelarts", "backend ssh has no use for it"),
        ("python: /opt/py/bin/python", "user: me", "user", "nobody logs in to nodes of modelarts"),
    ],
)  # fmt: skip
def test_mistakes_have_places(tmp_path: Path, old: str, new: str, word: str, words: str) -> None:
    write_inventory(tmp_path, INVENTORY.replace(old, new))
    told = [one for one in problems(write_job(tmp_path, head=HEAD)) if words in one]
    assert len(told) == 1 and place(told[0])[2] == word


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("  image: org/ms:1\n", "", "say either image"),
        ("  flavor_id: f1\n", "", "say flavor_id"),
        ("  flavor_id: f1\n", "  flavor_id: f1\n  priority: 1\n", "dedicated pool"),
        ("  flavor_id: f1\n", "  flavor_id: f1\n  sync: 1h\n", "sync has to lie between"),
        ("  flavor_id: f1\n", "  flavor_id: f1\n  volumes: [{at: /mnt/a}]\n", "exactly one of nfs, pfs and obs"),
    ],
)
def test_sections_are_complete_and_of_one_piece(tmp_path: Path, old: str, new: str, words: str) -> None:
    write_inventory(tmp_path, INVENTORY.replace(old, new))
    assert words in the_problem(write_job(tmp_path, head=HEAD))


def test_nodes_and_restarts_are_the_services_affair(tmp_path: Path) -> None:
    write_inventory(tmp_path, INVENTORY + "nodes: [{name: a}]\n")
    assert "modelarts gives the nodes when a job starts" in the_problem(write_job(tmp_path, head=HEAD))
    write_inventory(tmp_path)
    write_inventory(tmp_path, INVENTORY)
    assert "say `auto_restart`" in the_problem(write_job(tmp_path, "restart: {max: 2}\n", head=HEAD))
    assert "use msrun" in the_problem(write_job(tmp_path, "launcher: rank_table\n", head=HEAD))


def test_golden_render(tmp_path: Path) -> None:
    made = plan(tmp_path, ALL, "env: {A: b}\n")
    result = CliRunner().invoke(render, [str(tmp_path / "job.yaml")], standalone_mode=False)
    shown = result.stdout[result.stdout.index("═══ request to ModelArts") :]
    start = next(file.text for file in made.nodes[0].files if file.path == "start.sh")
    golden("modelarts.txt", f"=== start.sh\n{start}\n{shown}")
    assert "=== start.sh 0755 node-0 node-1" in first_and_last(made)


def test_files_for_ma_cli(tmp_path: Path) -> None:
    plan(tmp_path, ALL)
    out = tmp_path / "out"
    result = CliRunner().invoke(render, [str(tmp_path / "job.yaml"), "--ma-cli", str(out)], standalone_mode=False)
    assert result.exception is None, result.output
    options = yaml.safe_load((out / "ma-cli.yaml").read_text())
    assert options["train-instance-count"] == 2 and options["image-url"] == "org/ms:1"
    assert options["code-dir"].startswith("obs://bucket-a/keep/here/runs/") and options["code-dir"].endswith("/code/")
    settings = json.loads((out / "code/start.json").read_text())
    assert [node["name"] for node in settings["nodes"]] == ["node-0", "node-1"]
    assert (out / f"code/bundles-{settings['bundle']}.tar.gz").exists() and (out / "code/agent.py").exists()
    assert "volumes, max_hours, auto_restart, priority" in (out / "ma-cli.yaml").read_text()
    again = CliRunner().invoke(render, [str(tmp_path / "job.yaml"), "--ma-cli", str(out)], standalone_mode=False)
    assert "not empty" in str(again.exception)
    write_job(tmp_path, "env: {T: {secret: tok}}\n", head=HEAD)
    refused = CliRunner().invoke(render, [str(tmp_path / "job.yaml"), "--ma-cli", str(out)], standalone_mode=False)
    assert "secrets (T) cannot travel in files" in str(refused.exception)
    write_inventory(tmp_path)
    (tmp_path / "job.yaml").write_text(HEAD + TRAIN)
    other = CliRunner().invoke(render, [str(tmp_path / "job.yaml"), "--ma-cli", str(out)], standalone_mode=False)
    assert "this one is for backend ssh" in str(other.exception)

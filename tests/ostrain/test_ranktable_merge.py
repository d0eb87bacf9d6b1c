"""``ostrain ranktable merge|convert|explain``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ostrain.ranktable.check import check_data
from ostrain.ranktable.rules import rules_table
from tests.ostrain.ranktable_helpers import GOLDEN, SAMPLES, Command, runner

WRITTEN = GOLDEN / "hccl_tools"
PAIR = [WRITTEN / "hccl_8p_01234567_10.0.0.1.json", WRITTEN / "hccl_8p_01234567_10.0.0.2.json"]


@pytest.fixture
def ranktable(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    monkeypatch.chdir(tmp_path)
    return runner(monkeypatch, capsys)


def test_merging_is_merge_hccl_but_for_strings(ranktable: Command, tmp_path: Path) -> None:
    assert ranktable("merge", *PAIR).code == 0
    theirs = (WRITTEN / "hccl_2s_16p.json").read_text()
    assert (tmp_path / "hccl_2s_16p.json").read_text() == re.sub(r'("rank_id": )(\d+)', r'\1"\2"', theirs)
    assert ranktable("check", "hccl_2s_16p.json").code == 0


def test_servers_come_in_the_order_of_the_files(ranktable: Command) -> None:
    data = ranktable("merge", PAIR[1], PAIR[0], "-o", "-").json
    assert [server["server_id"] for server in data["server_list"]] == ["10.0.0.2", "10.0.0.1"]
    assert data["server_list"][1]["device"][0]["rank_id"] == "8"


def test_what_merge_hccl_wrote_is_mended(ranktable: Command) -> None:
    expected = ranktable("merge", *PAIR, "-o", "-").json
    assert ranktable("merge", WRITTEN / "hccl_2s_16p.json", "-o", "-").json == expected
    assert ranktable("convert", WRITTEN / "hccl_2s_16p.json", "--to", "1.0", "-o", "-").json == expected


def test_what_stands_in_both_is_refused_where_it_stands(ranktable: Command, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(PAIR[1].read_text().replace("10.20.1.12", "10.20.0.12").replace("10.0.0.2", "10.0.0.1"))
    said = ranktable("merge", PAIR[0], other)
    assert said.code == 2
    assert 'other.json:20:34: error: device_ip 10.20.0.12 is that of device 2 of server "10.0.0.1", too' in said.err
    assert "server_id" in said.err and not (tmp_path / "hccl_2s_16p.json").exists()


def test_a_broken_input_is_refused(ranktable: Command, tmp_path: Path) -> None:
    said = ranktable("merge", PAIR[0], GOLDEN / "broken" / "ip.json")
    assert said.code == 2 and "10.20.1.300" in said.err
    assert ranktable("merge", PAIR[0], GOLDEN / "broken" / "json-cut.json").code == 2
    assert list(tmp_path.iterdir()) == []


def test_versions_are_not_mixed(ranktable: Command) -> None:
    said = ranktable("merge", PAIR[0], SAMPLES / "version-1.2.json")
    assert said.code == 2 and "different versions" in said.err


def test_super_pods_are_joined_by_their_ids(ranktable: Command, tmp_path: Path) -> None:
    whole = json.loads((SAMPLES / "version-1.2-pods.json").read_text())
    parts = []
    for number in range(4):
        server, pod = whole["server_list"][number], whole["super_pod_list"][number // 2]
        listing = [{"super_pod_id": pod["super_pod_id"], "server_list": [pod["server_list"][number % 2]]}]
        for rank, device in enumerate(server["device"]):
            device = device | {"rank_id": str(rank)}
            server["device"][rank] = device
        part = {**whole, "server_count": "1", "server_list": [server], "super_pod_list": listing}
        parts.append(tmp_path / f"part-{number}.json")
        parts[-1].write_text(json.dumps(part))
    # Given crosswise, they come super pod by super pod.
    data = ranktable("merge", parts[0], parts[2], parts[1], parts[3], "-o", "-").json
    assert data == json.loads((SAMPLES / "version-1.2-pods.json").read_text())


def test_version_2_is_merged_too(ranktable: Command, tmp_path: Path) -> None:
    text = (SAMPLES / "version-2.0.json").read_text()
    other = tmp_path / "b.json"
    other.write_text(text.replace("dfdf00", "dfde00").replace("192.168.100", "192.168.200").replace("d_0_0", "d_0_1"))
    data = ranktable("merge", SAMPLES / "version-2.0.json", other, "-o", "-").json
    assert data["rank_count"] == 4 and check_data(data).findings.all == []


def test_the_old_modelarts_format_becomes_ranks(ranktable: Command) -> None:
    said = ranktable("convert", SAMPLES / "modelarts-group.json", "--to", "1.0", "-o", "-").json
    assert said == {
        "status": "completed",
        "version": "1.0",
        "server_count": "1",
        "server_list": [
            {"server_id": "192.168.0.25", "device": [{"device_id": "4", "device_ip": "192.1.10.254", "rank_id": "0"}]}
        ],
    }


def test_instances_are_sorted_by_number_not_by_text(ranktable: Command, tmp_path: Path) -> None:
    instances = [
        {"pod_name": f"job-{n}", "server_id": f"192.168.0.{n}", "devices": [
            {"device_id": str(d), "device_ip": f"192.1.{n}.{d + 1}"} for d in range(2)]}
        for n in (10, 2, 0)
    ]  # fmt: skip
    group = {"group_name": "hccl_world_group", "device_count": "6", "instance_count": "3", "instance_list": instances}
    path = tmp_path / "jobstart_hccl.json"
    path.write_text(json.dumps({"status": "completed", "group_count": "1", "group_list": [group]}))
    data = ranktable("convert", path, "--to", "1.0", "-o", "-").json
    assert [server["server_id"][-2:] for server in data["server_list"]] == [".0", ".2", "10"]
    assert data["server_list"][2]["device"][1]["rank_id"] == "5"
    assert ranktable("merge", path, "-o", "-").json["server_list"] == data["server_list"]


def test_super_pods_can_be_left_and_found_again(ranktable: Command, tmp_path: Path) -> None:
    facts = GOLDEN / "facts-a3"
    assert ranktable("make", "--facts", facts, "-o", "a.json").code == 0
    assert ranktable("convert", "a.json", "--to", "1.0", "-o", "b.json").code == 0
    assert "super" not in (tmp_path / "b.json").read_text()
    said = ranktable("convert", "b.json", "--to", "1.2", "-o", "c.json")
    assert said.code == 2 and "--facts" in said.err
    assert ranktable("convert", "b.json", "--to", "1.2", "--facts", facts, "-o", "c.json").code == 0
    assert (tmp_path / "c.json").read_bytes() == (tmp_path / "a.json").read_bytes()


def test_nothing_becomes_a_950_table(ranktable: Command) -> None:
    said = ranktable("convert", SAMPLES / "version-1.0.json", "--to", "2.0")
    assert said.code == 2 and "ranktable make --version 2.0" in said.err


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_samples_are_explained(path: Path, ranktable: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    said = ranktable("explain", path.name)
    assert (said.code, said.out) == (0, path.with_suffix(".txt").read_text())
    described = ranktable("explain", path.name, "--json").json
    assert (
        len(described["ranks"]) == len(ranktable("explain", path.name, "--ranks").out.split("\n\n")[1].splitlines()) - 1
    )


def test_a_broken_table_is_explained_as_far_as_it_goes(ranktable: Command) -> None:
    said = ranktable("explain", GOLDEN / "broken" / "ip.json")
    assert said.code == 1 and "10.0.0.2" in said.out and "10.20.1.300" in said.err
    assert ranktable("explain", GOLDEN / "broken" / "json-list.json").code == 1
    assert ranktable("explain").code == 2


def test_rules_are_listed_and_documented(ranktable: Command) -> None:
    assert "duplicate_ip" in ranktable("explain", "--rules").out
    assert {rule["name"]: rule["codes"] for rule in ranktable("explain", "--rules", "--json").json}["subnet"] == [
        "EI0006"
    ]
    assert rules_table() in (Path(__file__).parents[2] / "docs" / "ranktables.md").read_text()

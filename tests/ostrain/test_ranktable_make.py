"""``ostrain ranktable make``: byte for byte what hccl_tools.py writes, and what it cannot: nodes, A3, 950, IPv6."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import models.files
from ostrain.ranktable.check import check_data
from ostrain.ranktable.facts import node_facts
from ostrain.ranktable.make import Wanted, make
from tests.ostrain.ranktable_helpers import GOLDEN, Command, Said, runner

FACTS = GOLDEN / "facts"
# What hccl_tools.py (mindspore-ai/models) wrote for node-0 of `facts` and node-1, and merge_hccl.py of both.
WRITTEN = GOLDEN / "hccl_tools"


@pytest.fixture
def ranktable(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    monkeypatch.chdir(tmp_path)
    return runner(monkeypatch, capsys)


@pytest.mark.parametrize(
    ("node", "options", "name"),
    [
        (0, [], "hccl_8p_01234567_10.0.0.1.json"),
        (1, [], "hccl_8p_01234567_10.0.0.2.json"),
        (0, ["--devices", "[4,8)"], "hccl_4p_4567_10.0.0.1.json"),
        (0, ["--devices", "0"], "hccl_1p_0_10.0.0.1.json"),
        (0, ["--devices", "[2,4)", "--visible-devices", "3,2,1,0"], "hccl_2p_23_10.0.0.1.json"),
    ],
)
def test_the_same_bytes_under_the_same_name_as_hccl_tools(
    node: int, options: list[str], name: str, ranktable: Command, tmp_path: Path
) -> None:
    said = ranktable("make", "--facts", FACTS / f"node-{node}.txt", *options)
    assert said.code == 0, said.err
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == (WRITTEN / name).read_bytes()


def test_all_nodes_at_once_are_what_merging_makes(ranktable: Command, tmp_path: Path) -> None:
    assert ranktable("make", "--facts", FACTS).code == 0
    written = json.loads((WRITTEN / "hccl_2s_16p.json").read_text())
    ours = (tmp_path / "hccl_2s_16p.json").read_text()
    for rank in range(16):
        ours = ours.replace(f'"rank_id": "{rank}"', f'"rank_id": {rank}')
    assert ours == json.dumps(written, indent=4)


def test_an_a3_table_goes_super_pod_by_super_pod(ranktable: Command) -> None:
    said = ranktable("make", "--facts", GOLDEN / "facts-a3", "--backup", "-o", "-")
    data = said.json
    assert said.code == 0 and check_data(data).findings.all == []
    assert [server["server_id"][-2:] for server in data["server_list"]] == ["10", "12", "11", "13"]
    assert [pod["super_pod_id"] for pod in data["super_pod_list"]] == ["7", "8"]
    first = data["server_list"][0]["device"][0]
    assert first == {
        "device_id": "0",
        "super_device_id": "16777216",
        "device_ip": "192.23.0.10",
        "backup_device_ip": "192.23.1.11",
        "rank_id": "0",
    }


def test_a_950_table_is_the_nodes_root_info_with_ranks(ranktable: Command) -> None:
    data = ranktable("make", "--facts", GOLDEN / "facts-950", "-o", "-").json
    assert (data["version"], data["rank_count"]) == ("2.0", 4)
    assert [rank["rank_id"] for rank in data["rank_list"]] == [0, 1, 2, 3]
    assert [rank["device_id"] for rank in data["rank_list"]] == [0, 1, 0, 1]
    assert check_data(data).findings.all == []


def write_facts(folder: Path, nodes: dict[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in nodes.items():
        (folder / name).write_text(text)
    return folder


def conf(number: int, devices: int = 2, mask: str = "255.255.255.0") -> str:
    return "".join(
        f"address_{d}=10.20.{number}.{10 + d}\nnetmask_{d}={mask}\ngateway_{d}=10.20.{number}.1\n"
        for d in range(devices)
    )


def test_plain_hccn_conf_files_named_after_addresses(ranktable: Command, tmp_path: Path) -> None:
    nodes = {f"10.0.0.{n}.conf": conf(n) for n in (1, 2, 10)}
    data = ranktable("make", "--facts", write_facts(tmp_path / "facts", nodes), "-o", "-").json
    assert [server["server_id"] for server in data["server_list"]] == ["10.0.0.1", "10.0.0.2", "10.0.0.10"]
    assert data["server_list"][2]["device"][1] == {"device_id": "1", "device_ip": "10.20.10.11", "rank_id": "5"}


def test_ipv6_addresses(ranktable: Command, tmp_path: Path) -> None:
    text = "$ hccn_tool -i 0 -ip -inet6 -g\nipv6_address:2001:db8::{n}\nprefix_length:64\n"
    nodes = {f"n{n}.txt": text.replace("{n}", str(n)) for n in (1, 2)}
    folder = write_facts(tmp_path / "facts", nodes)
    data = ranktable("make", "--facts", folder, "--ipv6", "-o", "-").json
    assert [server["device"][0]["device_ip"] for server in data["server_list"]] == ["2001:db8::1", "2001:db8::2"]
    said = ranktable("make", "--facts", folder, "-o", "-")
    assert said.code == 3 and "device 0 has no IPv4 address" in said.err and "an IPv6 one: 2001:db8::1" in said.err


def fails(said: Said, *words: str) -> None:
    assert (said.code, said.out) == (3, ""), said
    for word in words:
        assert word in said.err, said.err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("ipaddr:10.20.1.13", "ipaddr:10.20.0.13"), ["node node-1", "10.20.0.13 is that of device 3 of server"]),
        (("ipaddr:10.20.1.13\nnetmask:255.255.0.0", "ipaddr:10.99.1.13\nnetmask:255.255.0.0"),
         ["device 3 lies in 10.99.0.0/16, the devices they talk to in 10.20.0.0/16", "EI0006"]),
        (("davinci5\n", ""), ["device 5 is missing"]),
        (("gateway_2=10.20.0.1", "gateway_2=10.21.0.1"), ["gateway 10.21.0.1 of device 2 is not in its subnet"]),
        (("10.0.0.2 172", "10.0.0.1 172"), ['server_id "10.0.0.1" is that of entry 1']),
    ],
)  # fmt: skip
def test_what_is_wrong_on_a_node_stops_the_table(
    change: tuple[str, str], words: list[str], ranktable: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "facts"
    shutil.copytree(FACTS, folder)
    path = folder / "node-1.txt"
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))
    said = ranktable("make", "--facts", folder, "--devices", "0-7", "-o", "x.json")
    fails(said, *words)
    assert not (tmp_path / "x.json").exists()


def test_a_card_without_an_address_is_told_with_the_tools_words(ranktable: Command, tmp_path: Path) -> None:
    folder = tmp_path / "facts"
    shutil.copytree(FACTS, folder)
    path = folder / "node-1.txt"
    text = path.read_text().replace("ipaddr:10.20.1.13\nnetmask:255.255.0.0", "hccn_tool is busy, please try again")
    path.write_text(text.replace("address_3=10.20.1.13\n", ""))
    fails(ranktable("make", "--facts", folder), "device 3 has no IPv4 address", "hccn_tool is busy")


def test_a_card_at_odds_with_its_file_is_a_warning(ranktable: Command, tmp_path: Path) -> None:
    folder = tmp_path / "facts"
    shutil.copytree(FACTS, folder)
    path = folder / "node-0.txt"
    path.write_text(path.read_text().replace("address_3=10.20.0.13\n", "address_3=10.20.0.99\n"))
    said = ranktable("make", "--facts", folder, "-o", "x.json")
    assert said.code == 0 and "device 3 has 10.20.0.13, but /etc/hccn.conf says 10.20.0.99" in said.err


def test_unequal_nodes_are_told(ranktable: Command, tmp_path: Path) -> None:
    folder = write_facts(tmp_path / "facts", {"a.conf": conf(1), "b.conf": conf(2, 1)})
    said = ranktable("make", "--facts", folder, "-o", "x.json")
    assert said.code == 0 and 'server "b" has 1 devices' in said.err
    fails(
        ranktable("make", "--facts", folder, "-o", "y.json", "--product", "910A"), "HCCL would refuse the table: EI0014"
    )


def test_nodes_of_different_products_make_no_table(ranktable: Command, tmp_path: Path) -> None:
    folder = tmp_path / "facts"
    shutil.copytree(GOLDEN / "facts-a3", folder)
    path = folder / "a3-1.txt"
    path.write_text(path.read_text().replace("Ascend910   ", "910B3       ").replace("Ascend910", "910B3"))
    fails(ranktable("make", "--facts", folder), "nodes of different products")


def test_an_ill_card_is_a_warning(ranktable: Command, tmp_path: Path) -> None:
    folder = tmp_path / "facts"
    shutil.copytree(GOLDEN / "facts-a3", folder)
    path = folder / "a3-1.txt"
    path.write_text(path.read_text().replace("| OK            | 172.6", "| Alarm         | 172.6", 1))
    said = ranktable("make", "--facts", folder, "-o", "x.json")
    assert said.code == 0 and "the health of device 0 is Alarm" in said.err


def test_one_server_needs_no_addresses(ranktable: Command, tmp_path: Path) -> None:
    folder = write_facts(tmp_path / "facts", {"n.txt": "$ ls /dev\ndavinci0\ndavinci1\ndavinci_manager\n"})
    said = ranktable("make", "--facts", folder, "--server-ip", "10.0.0.7", "-o", "-")
    assert said.code == 0 and "no device has an address" in said.err
    assert said.json["server_list"][0]["device"] == [{"device_id": str(d), "rank_id": str(d)} for d in (0, 1)]


@pytest.mark.parametrize("text", ["8-", "0,0", "a", "[4,2)", "", "0-99999", "٣"])
def test_a_list_of_devices_that_is_none(text: str, ranktable: Command) -> None:
    said = ranktable("make", "--facts", FACTS, f"--devices={text}")
    assert said.code == 2 and "list of devices" in said.err


def test_what_exists_is_kept_unless_forced(ranktable: Command, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("mine")
    assert ranktable("make", "--facts", FACTS, "-o", "t.json").code == 2
    assert (tmp_path / "t.json").read_text() == "mine"
    assert ranktable("make", "--facts", FACTS, "-o", "t.json", "--force").code == 0
    assert ranktable("check", "t.json").code == 0
    said = ranktable("make", "--facts", FACTS, "-o", "t.txt")
    assert said.code == 2 and "EI0004" in said.err


def test_a_failed_write_leaves_nothing(ranktable: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(models.files.os, "fsync", full)
    said = ranktable("make", "--facts", FACTS, "-o", "t.json")
    assert said.code == 2 and "No space left" in said.err
    assert list(tmp_path.iterdir()) == []


def test_json_holds_table_and_complaints(ranktable: Command) -> None:
    said = ranktable("make", "--facts", FACTS, "-o", "-", "--json").json
    assert said["file"] == "-" and said["complaints"] == [] and said["table"]["server_count"] == "2"


def test_facts_that_are_none(ranktable: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert ranktable("make", "--facts", tmp_path / "empty").code == 2
    assert ranktable("make", "--facts", tmp_path / "none").code == 2
    assert ranktable("make", "--facts", FACTS, "--cluster", "local").code == 2
    said = ranktable("make", "--cluster", "nowhere")
    assert said.code == 2 and "no inventory 'nowhere'" in said.err


def test_only_the_first_nodes(ranktable: Command) -> None:
    assert ranktable("make", "--facts", FACTS, "--nodes", 1, "-o", "-").json["server_count"] == "1"
    said = ranktable("make", "--facts", FACTS, "--nodes", 3)
    assert said.code == 2 and "has 2 nodes, not 3" in said.err


def test_devices_that_an_inventory_leaves_out_are_told() -> None:
    facts = node_facts("node-0", (FACTS / "node-0.txt").read_text())
    made = make([facts], Wanted(), {"node-0": range(4)})
    assert made.data is not None and len(made.data["server_list"][0]["device"]) == 4
    assert [complaint.what[:22] for complaint in made.complaints] == ["device 4-7 takes no pa"]

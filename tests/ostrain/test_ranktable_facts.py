"""What hccn_tool, npu-smi and /etc/hccn.conf print, as far as rank tables need it."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from ostrain.ranktable import hccn, npu_smi
from ostrain.ranktable.facts import node_facts
from ostrain.ranktable.products import by_chip
from ostrain.ranktable.subnets import network_of, outliers
from ostrain.ranktable.transcript import read_folder, sections
from tests.ostrain.ranktable_helpers import GOLDEN
from tests.testbed.ascend import chip_table, hccn_conf, info_table

IP = ipaddress.ip_address
A3_INFO = """\
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip  Phy-ID              | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 1     Ascend910           | OK            | 172.6       52                0    / 0             |
| 0     2                   | 0000:9D:00.0  | 0           0    / 0          60156/ 65536         |
+------------------------------------------------------------------------------------------------+
| 1     Ascend910           | Warning       | -           51                0    / 0             |
| 1     3                   | 0000:9F:00.0  | 0           0    / 0          2888 / 65536         |
+===========================+===============+====================================================+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
| 5       0                 | 2290156       | VLLMEngineCore           | 56630                   |
"""


def test_chips_of_an_a2() -> None:
    chips, physical = npu_smi.parse_info(info_table(8))
    assert [(chip.npu, chip.chip, chip.device, chip.name, chip.health) for chip in chips] == [
        (number, 0, number, "910B3", "OK") for number in range(8)
    ]
    assert not physical
    mapped = npu_smi.parse_map(chip_table(8))
    assert [chip.device for chip in mapped] == list(range(8))
    assert npu_smi.joined(chips, mapped) == chips


def test_chips_of_an_a3_have_physical_ids_and_processes_are_no_chips() -> None:
    chips, physical = npu_smi.parse_info(A3_INFO)
    assert physical
    assert [(chip.npu, chip.chip, chip.device, chip.health) for chip in chips] == [
        (1, 0, 2, "OK"),
        (1, 1, 3, "Warning"),
    ]


def test_maps_with_physical_ids() -> None:
    header = "\tNPU ID                 Chip ID                Chip Logic ID          Chip Phy-ID            Chip Name\n"
    text = (
        header
        + "\t0                      1                      1                      9                      Ascend910\n"
    )
    text += "\t0                      2                      -                      -                      Mcu\n"
    assert npu_smi.parse_map(text) == [npu_smi.Chip(0, 1, 9, "Ascend910")]


@pytest.mark.parametrize(
    "text",
    [
        "\tSDID                           : 16777216\n\tSuper Pod Size : 384\n\tSuper Pod ID : 0\n\tServer Index : 4\n",
        "SDID : 16777216\nSuper Pod ID : 0",
        "| SDID                         : 16777216   | Super Pod ID : 0                              |",
    ],
)
def test_places_in_super_pods(text: str) -> None:
    assert npu_smi.parse_pod(text) == npu_smi.PodPlace(16777216, "0")


def test_no_place() -> None:
    assert npu_smi.parse_pod("This device does not support querying spod-info.") is None


@pytest.mark.parametrize(
    ("chip", "physical", "name"),
    [("910B3", False, "910B"), ("Ascend 910B4", False, "910B"), ("910ProB", False, "910A"), ("910A", False, "910A"),
     ("Ascend910", True, "A3"), ("910_9382", True, "A3"), ("950PR", True, "950"), ("310P3", False, None)],
)  # fmt: skip
def test_products_by_chip(chip: str, physical: bool, name: str | None) -> None:
    found = by_chip(chip, physical)
    assert (found.name if found else None) == name


def test_hccn_conf() -> None:
    found = hccn.parse_conf("# comment\n" + hccn_conf(2, 3) + "arp_0=-i eth0 -s 10.20.0.1 00:00:5e:00:53:01\n")
    assert found[4][1] == hccn.NicAddress(IP("10.20.3.11"), 16, IP("10.20.0.1"))
    assert set(found[4]) == {0, 1} and found[6] == {}


def test_hccn_conf_with_ipv6() -> None:
    found = hccn.parse_conf("address_0=2001:db8::5/64\naddress_1=10.0.0.1\nnetmask_1=255.255.255.0\n")
    assert found[6][0] == hccn.NicAddress(IP("2001:db8::5"), 64)
    assert found[4][1].network == ipaddress.ip_network("10.0.0.0/24")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ipaddr:10.20.0.10\nnetmask:255.255.255.0\n", hccn.NicAddress(IP("10.20.0.10"), 24)),
        ("ipv6_address:2001:db8::1\nprefix_length:64\n", hccn.NicAddress(IP("2001:db8::1"), 64)),
        ("ipv6addr: 2001:db8::1/64\n", hccn.NicAddress(IP("2001:db8::1"), 64)),
        ("ipaddr:10.20.0.10\nnetmask:nonsense\n", hccn.NicAddress(IP("10.20.0.10"))),
        ("hccn_tool is busy, please try again\n", None),
        ("", None),
    ],
)
def test_hccn_tool(text: str, expected: hccn.NicAddress | None) -> None:
    assert hccn.parse_tool(text) == expected


def test_gateways() -> None:
    assert hccn.parse_gateway("default gateway:192.168.100.1, Iface:eth0\n") == IP("192.168.100.1")
    assert hccn.parse_gateway("no gateway set") is None


def test_what_the_card_has_goes_before_what_its_file_says() -> None:
    text = "$ cat /etc/hccn.conf\naddress_0=10.0.0.1\nnetmask_0=255.0.0.0\n$ hccn_tool -i 0 -ip -g\nipaddr:10.0.0.2\n"
    device = node_facts("n", text).devices[0]
    assert device.addresses[4] == hccn.NicAddress(IP("10.0.0.2"))
    assert device.conf[4].ip == IP("10.0.0.1")


def test_transcripts_with_prompts_and_paths() -> None:
    text = (
        "Last login: today\n[root@node-1 ~]# /usr/bin/hccn_tool -i 3 -ip -g\nipaddr:10.0.0.3\n# no prompt\n$ ls /dev\nx"
    )
    first, second = sections(text)
    assert first.words == ("hccn_tool", "-i", "3", "-ip", "-g") and first.option("-i") == "3"
    assert "# no prompt" in first.output and second.output == "x"


def test_nodes_come_in_natural_order_from_files_and_folders(tmp_path: Path) -> None:
    for name in ("node-10.txt", "node-2.conf", ".hidden", "notes.md"):
        (tmp_path / name).write_text("address_0=10.0.0.1\n")
    (tmp_path / "node-1").mkdir()
    (tmp_path / "node-1" / "hccn.conf").write_text("address_0=10.0.0.1\n")
    (tmp_path / "node-1" / "npu-smi-info.txt").write_text(info_table(1))
    found = read_folder(tmp_path)
    assert list(found) == ["node-1", "node-2", "node-10"]
    facts = node_facts("node-1", found["node-1"])
    assert facts.present == {0} and facts.product and facts.product.name == "910B"
    assert facts.devices[0].addresses[4].ip == IP("10.0.0.1")


def test_the_golden_facts() -> None:
    facts = node_facts("a3-0", (GOLDEN / "facts-a3" / "a3-0.txt").read_text())
    assert facts.server_id == "172.22.0.10" and facts.product and facts.product.name == "A3"
    assert [device.pod and device.pod.super_device_id for device in facts.devices.values()] == [
        16777216, 16777217, 16842752, 16842753,
    ]  # fmt: skip


def test_subnets_are_judged_by_the_majority_only() -> None:
    def nets(*words: str) -> dict[int, object]:
        return {number: network_of(IP(word), 24) for number, word in enumerate(words)}

    one = nets("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.1.4")
    assert [(found.server, found.device) for found in outliers([one])] == [(0, 3)]  # type: ignore[list-item]
    halves = nets("10.0.0.1", "10.0.1.2", "10.0.0.3", "10.0.1.4")
    assert outliers([halves, halves, halves]) == []  # type: ignore[list-item]
    crossed = nets("10.0.1.1", "10.0.0.2", "10.0.0.3", "10.0.1.4")
    assert [(found.server, found.device) for found in outliers([halves, halves, crossed])] == [(2, 0), (2, 1)]  # type: ignore[list-item]
    assert outliers([]) == [] and outliers([{}]) == []

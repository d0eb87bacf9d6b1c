"""Facts gathered from nodes: this machine with stand-ins for the tools, and real nodes over SSH."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.backend import NodeError
from cluster.hccn import gather
from ostrain.plan import NodeAccess
from ostrain.ranktable.facts import node_facts
from tests.ostrain.ranktable_helpers import Command, runner
from tests.testbed import Testbed

LOCAL = {"here": NodeAccess("localhost")}


@pytest.fixture
def ranktable(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    monkeypatch.chdir(tmp_path)
    return runner(monkeypatch, capsys)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder first on PATH."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def write_program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


MAP = r"""
case "$*" in
"info -m") printf 'NPU ID   Chip ID   Chip Logic ID   Chip Phy-ID   Chip Name\n'
           printf '0        0         0               0             Ascend910\n'
           printf '0        1         1               1             Ascend910\n'
           printf '0        2         -               -             Mcu\n' ;;
"info -t spod-info -i 0 -c "*) printf 'SDID : %s\nSuper Pod ID : 5\n' "$((100 + $7))" ;;
*) echo "nothing about $*" ;;
esac
"""


def test_this_machine_is_asked_with_its_own_tools(programs: Path) -> None:
    write_program(programs, "npu-smi", MAP)
    write_program(programs, "hostname", '[ "$1" = -I ] && echo "127.0.0.1 192.0.2.7" || echo here')
    asked: list[str] = []
    facts = node_facts("here", str(gather(LOCAL, "local", answered=asked.append)["here"]))
    assert asked == ["here"]
    assert facts.server_id == "192.0.2.7" and facts.product and facts.product.name == "A3"
    assert [device.pod and device.pod.super_device_id for device in facts.devices.values()] == [100, 101]


def test_what_a_tool_prints_to_standard_error_is_kept(programs: Path) -> None:
    write_program(programs, "npu-smi", "echo dcmi module initialize failed >&2; exit 1")
    assert "dcmi module initialize failed" in str(gather(LOCAL, "local")["here"])


def test_a_machine_without_npus_makes_no_table(programs: Path, ranktable: Command) -> None:
    said = ranktable("make")
    assert said.code == 3 and "no device is known" in said.err and "no rank table was written" in said.err


def test_a_shell_that_fails_is_a_nodes_error(programs: Path) -> None:
    write_program(programs, "sh", "echo no shell here >&2; exit 9")
    answer = gather(LOCAL, "local")["here"]
    assert isinstance(answer, NodeError) and "no shell here" in answer.why


@pytest.fixture(scope="module")
def bed() -> Iterator[Testbed]:
    with Testbed(2, npus=8) as bed:
        yield bed


@pytest.mark.nodes
def test_real_nodes_over_ssh(bed: Testbed, ranktable: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in bed.environment().items():
        monkeypatch.setenv(name, value)
    inventory = tmp_path / "bed.yaml"
    inventory.write_text(bed.inventory())
    said = ranktable("make", "--cluster", inventory, "--save-facts", "kept", "--json", "-o", "t.json")
    assert said.code == 0, said.err
    servers = said.json["table"]["server_list"]
    assert [server["server_id"] for server in servers] == [node.address for node in bed.nodes]
    assert servers[1]["device"][7] == {"device_id": "7", "device_ip": "10.20.1.17", "rank_id": "15"}
    assert ranktable("check", "t.json", "--cluster", inventory, "--strict").code == 0

    again = ranktable("make", "--facts", "kept", "-o", "-").json
    assert [server["device"] for server in again["server_list"]] == [server["device"] for server in servers]

    (bed.nodes[1].folder / "etc" / "hccn.conf").write_text("address_0=10.20.1.99\nnetmask_0=255.255.0.0\n")
    said = ranktable("check", "t.json", "--cluster", inventory)
    assert said.code == 1 and "the card has 10.20.1.99" in said.out
    said = ranktable("make", "--cluster", inventory, "-o", "u.json")
    assert said.code == 3 and "node node-1" in said.err and "device 1 has no IPv4 address" in said.err
    assert not (tmp_path / "u.json").exists()

    text = bed.inventory()
    inventory.write_text(text.replace("name: node-1", "name: node-1, port: 9"))
    assert inventory.read_text() != text
    said = ranktable("make", "--cluster", inventory)
    assert said.code == 4 and "node node-1" in said.err

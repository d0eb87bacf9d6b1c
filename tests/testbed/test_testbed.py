"""The testbed itself: nodes that are really apart, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.testbed import Testbed, TestbedError, network

pytestmark = pytest.mark.nodes


def test_nodes_are_apart_and_reach_each_other() -> None:
    began = time.monotonic()
    with Testbed(3, npus=2) as bed:
        took = time.monotonic() - began
        names = [node.exec(["hostname"]).stdout.decode().strip() for node in bed.nodes]
        assert names == ["node-0", "node-1", "node-2"]
        addresses = [json.loads(node.exec(["ip", "-j", "addr", "show", "eth0"]).stdout) for node in bed.nodes]
        assert [facts[0]["addr_info"][0]["local"] for facts in addresses] == [node.address for node in bed.nodes]
        assert len({node.exec(["cat", "/proc/sys/kernel/random/boot_id"]).stdout for node in bed.nodes}) == 3
        bed.nodes[0].exec(["sh", "-c", "echo mine > ~/file; test $(id -u) != 0"])
        assert bed.nodes[1].exec(["sh", "-c", "ls ~"]).stdout == b""
        assert b"bytes from" in bed.nodes[0].exec(["ping", "-c1", "-W2", "node-2"]).stdout if has_ping() else True
        table = bed.nodes[1].exec(["npu-smi", "info"]).stdout.decode()
        assert table.count("910B3") == 2 and "0000:C2:00.0" in table
        assert bed.nodes[1].exec(["hccn_tool", "-i", "1", "-ip", "-g"]).stdout == (
            b"ipaddr:10.20.1.11\nnetmask:255.255.0.0\n"
        )
        assert bed.nodes[0].exec(["sh", "-c", "ls /dev/davinci[0-9]*"]).stdout == b"/dev/davinci0\n/dev/davinci1\n"
        bed_id, folder = bed.id, bed.folder
    assert not folder.exists()
    assert network.interfaces_of(bed_id) == []
    assert not list(Path("/run/netns").glob(f"{network.PREFIX}{bed_id}-*"))
    assert took < 10


def test_a_disk_of_a_nodes_own_can_be_full() -> None:
    with Testbed(2, disk=16) as bed:
        full = bed.nodes[0].exec(["sh", "-c", "head -c 20000000 /dev/zero > ~/big; echo $?; stat -c %s ~/big"]).stdout
        assert full.split()[0] == b"1" and int(full.split()[1]) <= 16 << 20
        bed.nodes[1].exec(["sh", "-c", "head -c 10000000 /dev/zero > ~/big"])
        assert (bed.nodes[1].home / "big").stat().st_size == 10_000_000
        bed.nodes[0].reboot()
        assert (bed.nodes[0].home / "big").exists()
        folder = bed.folder
    assert not folder.exists()
    assert str(folder) not in Path("/proc/self/mounts").read_text()


def has_ping() -> bool:
    return network.find_program("ping") is not None


def test_two_at_once_do_not_clash() -> None:
    with Testbed(1) as one, Testbed(1) as two:
        assert one.subnet != two.subnet and one.id != two.id
        for bed in (one, two):
            assert bed.nodes[0].exec(["hostname"]).stdout == b"node-0\n"


def test_leftovers_of_a_killed_owner_are_cleared() -> None:
    script = (
        "import time\n"
        "from tests.testbed import Testbed\n"
        "bed = Testbed(1)\n"
        "print(bed.id, bed.nodes[0].pid, flush=True)\n"
        "time.sleep(60)"
    )
    root = str(Path(__file__).resolve().parents[2])
    with subprocess.Popen([sys.executable, "-c", script], cwd=root, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        bed_id, pid = owner.stdout.readline().split()
        owner.send_signal(signal.SIGKILL)
    assert network.process_start(int(pid)), "a killed owner cannot have cleaned up"
    with Testbed(1):
        assert not network.process_start(int(pid))
        assert network.interfaces_of(bed_id) == [] and not (network.BASE / bed_id).exists()


def test_up_and_down_by_hand() -> None:
    def testbed(*arguments: str) -> str:
        argv = [sys.executable, "-m", "tests.testbed", *arguments]
        root = Path(__file__).resolve().parents[2]
        return subprocess.run(argv, cwd=root, capture_output=True, text=True, timeout=60, check=True).stdout

    text = testbed("up", "1")
    home = next(line for line in text.splitlines() if line.startswith("export HOME=")).partition("=")[2]
    folder = Path(home).parent
    try:
        assert "backend: ssh" in (folder / "testbed.yaml").read_text()
        argv = ["ssh", "-F", f"{home}/.ssh/config", "-o", "BatchMode=yes", "node-0", "hostname"]
        assert subprocess.run(argv, capture_output=True, timeout=20, check=True).stdout == b"node-0\n"
    finally:
        assert folder.name in testbed("down", folder.name)
    assert not folder.exists()


def test_missing_parts_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "find_program", lambda name: None if name == "sshd" else "/bin/true")
    with pytest.raises(TestbedError, match="apt-get install -y openssh-server"):
        network.require_parts()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(TestbedError, match="needs root"):
        network.require_parts()

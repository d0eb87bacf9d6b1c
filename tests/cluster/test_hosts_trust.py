"""Host keys scanned from real sshds, pinned, believed before known_hosts, and never replaced unasked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cluster.backend import NodeError
from cluster.hosts_lock import read_lock
from cluster.ssh import SSHTransport
from ostrain.cli.hosts import hosts
from ostrain.errors import OstrainError
from ostrain.plan import NodeAccess
from tests.cluster.test_ssh_errors import known_hosts, shown_fingerprint
from tests.testbed import Testbed
from tests.testbed.bed import make_key

pytestmark = pytest.mark.nodes


@pytest.fixture
def inventory(bed: Testbed, tmp_path: Path) -> Path:
    path = tmp_path / "bed.yaml"
    path.write_text(bed.inventory())
    return path


def called(*words: str) -> dict[str, Any]:
    result = CliRunner().invoke(hosts, [*words, "--json"], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return {"code": result.return_value, "talk": result.stderr, **json.loads(result.stdout)}


def reached(node: str, inventory: Path, host: str = "") -> bytes:
    transport = SSHTransport(node, NodeAccess(host or node, inventory=str(inventory)))
    try:
        return transport.run(["hostname"], timeout=10).stdout
    finally:
        transport.close()


def test_keys_are_shown_beside_known_hosts_and_pinned(bed: Testbed, inventory: Path) -> None:
    told = called("trust", str(inventory), "--yes")
    assert (told["code"], told["pinned"]) == (0, True)
    assert [(row["node"], row["known_hosts"], row["lock"]) for row in told["keys"]] == [
        (f"node-{n}", "same", "new") for n in range(3)
    ]
    assert told["keys"][1]["fingerprint"] == shown_fingerprint(bed.nodes[1].folder / "ssh_host_key.pub")
    assert [(pin.host, pin.note) for pin in read_lock(inventory.with_name("hosts.lock"))] == [
        (node.address, node.name) for node in bed.nodes
    ]
    again = called("trust", str(inventory), "--yes")
    assert (again["code"], again["pinned"]) == (0, False) and "already" in again["talk"]
    listed = called("list", str(inventory))
    assert [row["fingerprint"] for row in listed["keys"]] == [row["fingerprint"] for row in told["keys"]]


def test_one_unknown_node_is_told_with_the_command_that_pins_it(
    bed: Testbed, inventory: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = known_hosts(bed, monkeypatch, tmp_path, "")
    with pytest.raises(NodeError) as caught:
        reached("node-2", inventory)
    assert caught.value.kind == "host_key_unknown"
    assert f"ostrain hosts trust {inventory} node-2" in caught.value.next_step
    told = called("trust", str(inventory), "node-2", "--yes")
    assert [(row["node"], row["known_hosts"]) for row in told["keys"]] == [("node-2", "")]
    assert reached("node-2", inventory) == b"node-2\n"
    assert file.read_text() == "", "the user's own file is left alone"
    assert "2 of 3 nodes are not pinned" in called("list", str(inventory))["talk"]
    with pytest.raises(NodeError):
        reached("node-1", inventory)


def test_known_hosts_does_not_override_the_lock(bed: Testbed, inventory: Path, tmp_path: Path) -> None:
    make_key(tmp_path / "other", "other")
    kind, key = (tmp_path / "other.pub").read_text().split()[:2]
    lock = inventory.with_name("hosts.lock")
    lock.write_text(f"{bed.nodes[0].address} {kind} {key} node-0\n")
    with pytest.raises(NodeError) as caught:
        reached("node-0", inventory)
    assert (caught.value.kind, caught.value.exit_code) == ("host_key_changed", 4)
    assert str(lock) in caught.value.why and shown_fingerprint(tmp_path / "other.pub") in caught.value.why
    assert caught.value.next_step.endswith(f"ostrain hosts trust {inventory} node-0 --replace")
    assert reached("node-1", inventory) == b"node-1\n", "a host the lock does not name is left to known_hosts"
    before = lock.read_text()
    with pytest.raises(OstrainError) as refused:
        called("trust", str(inventory), "--yes")
    assert refused.value.exit_code == 4 and "--replace" in refused.value.next_step
    assert lock.read_text() == before
    assert called("trust", str(inventory), "--yes", "--replace")["pinned"]
    assert reached("node-0", inventory) == b"node-0\n"


def test_the_command_itself_prints_no_traceback_of_kinds_of_keys_that_a_host_has_not(
    bed: Testbed, inventory: Path
) -> None:
    argv = [sys.executable, "-m", "ostrain", "hosts", "trust", str(inventory), "--yes"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True, env=env)
    assert "Traceback" not in done.stderr and "pinned 3 keys of 3 nodes" in done.stderr


def test_nobody_to_ask_pins_nothing_and_silent_nodes_do_not_hide_others(bed: Testbed, inventory: Path) -> None:
    with pytest.raises(OstrainError, match="nobody is there"):
        called("trust", str(inventory))
    assert not inventory.with_name("hosts.lock").exists()
    text = inventory.read_text().replace("host: node-1", f"host: {bed.subnet}.10\n    ,port: 2222")
    inventory.write_text(text)
    told = called("trust", str(inventory), "--yes")
    assert told["code"] == 4 and "node-1" in told["talk"]
    assert {row["node"] for row in told["keys"]} == {"node-0", "node-2"}
    with pytest.raises(OstrainError, match="no node 'node-9'"):
        called("trust", str(inventory), "node-9")

"""What a person is told when a node cannot be reached. Real sshd, real keys, real refusals."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.backend import NodeError
from cluster.client import AgentClient
from cluster.ssh import SSHTransport
from ostrain.plan import NodeAccess
from tests.testbed import Testbed
from tests.testbed.bed import make_key

pytestmark = pytest.mark.nodes


def failure(access: NodeAccess, timeout: float = 5.0) -> NodeError:
    transport = SSHTransport("node-0", access, connect_timeout=timeout)
    try:
        with pytest.raises(NodeError) as caught:
            transport.run(["true"], timeout=timeout)
    finally:
        transport.close()
    assert caught.value.where == "node node-0" and caught.value.next_step
    return caught.value


def known_hosts(bed: Testbed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> Path:
    """A home of its own with the bed's key and this known_hosts."""
    ssh = tmp_path / "home" / ".ssh"
    ssh.mkdir(parents=True)
    for name in ("id_ed25519", "config"):
        content = (bed.home / ".ssh" / name).read_text()
        (ssh / name).write_text(content.replace(str(bed.home), str(tmp_path / "home")))
        (ssh / name).chmod(0o600)
    (ssh / "known_hosts").write_text(text)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return ssh / "known_hosts"


def shown_fingerprint(path: Path) -> str:
    out = subprocess.run(["ssh-keygen", "-lf", str(path)], capture_output=True, text=True, check=True, timeout=10)
    return out.stdout.split()[1]


def test_unknown_key_is_refused_and_can_be_trusted(
    bed: Testbed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = known_hosts(bed, monkeypatch, tmp_path, "")
    error = failure(NodeAccess("node-0"))
    assert error.kind == "host_key_unknown"
    assert shown_fingerprint(bed.nodes[0].folder / "ssh_host_key.pub") in error.why
    assert file.read_text() == "", "looking must not trust"
    command = error.next_step.partition("trust it: ")[2]
    assert command.startswith("ssh-keyscan -t ed25519 -p 22 ") and command.endswith(f">> {file}")
    subprocess.run(["bash", "-c", command], check=True, timeout=10, capture_output=True)
    transport = SSHTransport("node-0", NodeAccess("node-0"))
    assert transport.run(["echo", "trusted"], timeout=10).stdout == b"trusted\n"
    transport.close()


@pytest.mark.parametrize("hashed", [False, True])
def test_changed_key_names_the_line(
    bed: Testbed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hashed: bool
) -> None:
    make_key(tmp_path / "old", "old")
    key = " ".join((tmp_path / "old.pub").read_text().split()[:2])
    file = known_hosts(bed, monkeypatch, tmp_path, f"# a comment\nother {key}\n{bed.nodes[0].address} {key}\n")
    if hashed:
        subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(file)], check=True, timeout=10, capture_output=True)
    error = failure(NodeAccess("node-0"))
    assert error.kind == "host_key_changed"
    assert f"{file}:3" in error.why or (hashed and f"{file}:" in error.why)
    assert shown_fingerprint(tmp_path / "old.pub") in error.why
    assert shown_fingerprint(bed.nodes[0].folder / "ssh_host_key.pub") in error.why
    assert "ssh-keygen -R" in error.next_step


def test_wrong_user_and_wrong_key(bed: Testbed, tmp_path: Path) -> None:
    error = failure(NodeAccess("node-0", user="nobody"))
    assert error.kind == "auth_failed"
    assert "nobody" in error.what and str(bed.home / ".ssh/id_ed25519") in error.why
    error = failure(NodeAccess("node-0", identity_file=str(tmp_path / "missing")))
    assert error.kind == "auth_failed" and "does not exist" in error.what


def test_a_key_with_a_passphrase_never_asks(bed: Testbed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known_hosts(bed, monkeypatch, tmp_path, (bed.home / ".ssh/known_hosts").read_text())
    key = tmp_path / "home/.ssh/id_ed25519"
    argv = ["ssh-keygen", "-q", "-p", "-N", "locked-away", "-P", "", "-f", str(key)]
    subprocess.run(argv, check=True, timeout=10, capture_output=True)
    began = time.monotonic()
    error = failure(NodeAccess("node-0"))
    assert error.kind == "auth_failed" and "passphrase" in error.why and time.monotonic() - began < 5


def test_refused_port(bed: Testbed) -> None:
    error = failure(NodeAccess("node-0", port=2222))
    assert error.kind == "unreachable"
    assert f"{bed.nodes[0].address}:2222" in error.what and "refused" in error.why.lower()


def test_address_nobody_has(bed: Testbed) -> None:
    began = time.monotonic()
    error = failure(NodeAccess(f"{bed.subnet}.99"), timeout=2.0)
    assert error.kind == "unreachable" and time.monotonic() - began < 6
    assert f"{bed.subnet}.99:22" in error.what and error.why


def test_a_name_nobody_has(bed: Testbed) -> None:
    error = failure(NodeAccess("no-such-host.invalid"))
    assert error.kind == "unreachable" and "no-such-host.invalid" in error.what


def test_a_port_that_speaks_no_ssh(bed: Testbed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.ssh.CONNECT_TIMEOUT", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        error = failure(NodeAccess("127.0.0.1", port=server.getsockname()[1]), timeout=1.0)
    assert error.kind == "unreachable" and "banner" in error.why


def test_python_missing_on_the_node(bed: Testbed) -> None:
    transport = SSHTransport("node-0", NodeAccess("node-0"))
    try:
        with pytest.raises(NodeError) as caught:
            AgentClient(transport, "/opt/none/bin/python3", "~/.ostrain").root(10.0)
    finally:
        transport.close()
    assert caught.value.kind == "python_missing" and "/opt/none/bin/python3" in caught.value.what
    assert caught.value.exit_code == 3


def test_a_root_that_may_not_be_written(bed: Testbed) -> None:
    transport = SSHTransport("node-0", NodeAccess("node-0"))
    try:
        with pytest.raises(NodeError) as caught:
            AgentClient(transport, sys.executable, "/etc/ostrain").root(10.0)
    finally:
        transport.close()
    assert caught.value.kind == "permission" and "/etc/ostrain" in caught.value.what


def test_a_command_that_takes_too_long(bed: Testbed) -> None:
    transport = SSHTransport("node-0", NodeAccess("node-0"))
    began = time.monotonic()
    try:
        with pytest.raises(NodeError, match="broke"):
            transport.run(["sleep", "30"], timeout=1.0)
        assert time.monotonic() - began < 4
        assert transport.run(["echo", "again"], timeout=10).stdout == b"again\n"
    finally:
        transport.close()


def test_words_and_bytes_arrive_as_they_are(bed: Testbed) -> None:
    transport = SSHTransport("node-0", NodeAccess("node-0"))
    words = ["two words", "$(id)", "it's", "a\nb", "", "*", "漢字", "`x`", "--", "\\"]
    try:
        result = transport.run(["python3", "-c", "import sys; print(sys.argv[1:])", *words], timeout=10)
        assert eval_list(result.stdout) == words
        data = bytes(range(256)) * 5000
        result = transport.run(["cat"], data, timeout=20)
        assert (result.returncode, result.stdout) == (0, data)
        assert transport.run(["sh", "-c", "echo problem >&2; exit 7"], timeout=10).returncode == 7
    finally:
        transport.close()


def eval_list(text: bytes) -> list[str]:
    import ast

    value = ast.literal_eval(text.decode())
    assert isinstance(value, list)
    return value


def test_through_a_jump_host_every_key_is_checked(
    bed: Testbed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = (bed.home / ".ssh/known_hosts").read_text().splitlines(keepends=True)
    file = known_hosts(bed, monkeypatch, tmp_path, "".join(lines))
    config = tmp_path / "home/.ssh/config"
    config.write_text("Host node-1\n  ProxyJump node-0\n\n" + config.read_text())
    transport = SSHTransport("node-1", NodeAccess("node-1"))
    result = transport.run(["sh", "-c", "hostname; echo $SSH_CONNECTION"], timeout=10)
    transport.close()
    assert result.stdout.split()[:2] == [b"node-1", bed.nodes[0].address.encode()]
    file.write_text("".join(line for line in lines if not line.startswith(bed.nodes[0].address + " ")))
    transport = SSHTransport("node-1", NodeAccess("node-1"))
    with pytest.raises(NodeError) as caught:
        transport.run(["true"], timeout=10)
    transport.close()
    assert caught.value.kind == "host_key_unknown" and bed.nodes[0].address in caught.value.what

"""A testbed: nodes on a bridge and a client's home folder that reaches them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tests.testbed import ascend
from tests.testbed.network import (
    PREFIX,
    TestbedError,
    base_lock,
    claim,
    destroy,
    find_program,
    ip,
    mount_memory,
    require_parts,
)
from tests.testbed.node import Node

REPOSITORY = Path(__file__).resolve().parents[2]
UID = 20001
USER = "trainer"

_SSHD = """Port {port}
ListenAddress {address}
HostKey {folder}/ssh_host_key
AuthorizedKeysFile /etc/testbed_keys
PidFile {folder}/sshd.pid
AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin no
AllowUsers {user}
UsePAM no
UseDNS no
PrintMotd no
MaxStartups 100
MaxSessions 100
AcceptEnv NONE
SetEnv PATH={path}
"""

_CLIENT = """Host {name}
  HostName {address}
  Port {port}
  User {user}
  IdentityFile {home}/.ssh/id_ed25519
  IdentitiesOnly yes
  UserKnownHostsFile {home}/.ssh/known_hosts
"""


class Testbed:
    """N nodes, from outside reached over a bridge; a context manager.

    count: how many nodes; npus: stand-in NPUs a node (0: none). expose: folders the nodes' user must be able to
    read though they lie under closed ones. keep: leave it up when this process ends (``destroy`` ends it).
    disk: size of each node's own file system for its home, in MB of memory; 0: it is the machine's.
    """

    __test__ = False

    def __init__(
        self,
        count: int,
        *,
        npus: int = 0,
        port: int = 22,
        expose: Sequence[Path | str] = (),
        keep: bool = False,
        disk: int = 0,
    ) -> None:
        require_parts()
        self.disk = disk
        self.id, self.folder, self.subnet = claim(keep)
        self.home = self.folder / "client"
        self.npus, self.port = npus, port
        self.expose = [sys.prefix, sys.base_prefix, str(REPOSITORY), *map(str, expose)]
        self.nodes: list[Node] = []
        try:
            self._build(count)
        except BaseException:
            destroy(self.folder)
            raise

    def __enter__(self) -> Testbed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End every process and remove everything."""
        for node in self.nodes:
            node.power_off()
        with base_lock():
            if self.folder.exists():
                destroy(self.folder)

    def _build(self, count: int) -> None:
        bridge = f"ob{self.id}"
        names = [f"{PREFIX}{self.id}-{number}" for number in range(count)]
        lines = [f"link add {bridge} type bridge", f"addr add {self.subnet}.1/24 dev {bridge}", f"link set {bridge} up"]
        for number, name in enumerate(names):
            lines.append(f"netns add {name}")
            lines.append(f"link add {bridge}n{number} type veth peer name eth0 netns {name}")
            lines.append(f"link set {bridge}n{number} master {bridge} up")
        ip(*lines)
        self._write_client()
        for number, name in enumerate(names):
            address = f"{self.subnet}.{10 + number}"
            route = f"route add default via {self.subnet}.1"
            ip("link set lo up", f"addr add {address}/24 dev eth0", "link set eth0 up", route, namespace=name)
            self.nodes.append(self._make_node(number, name, address))
        for node in self.nodes:
            self._write_hosts(node)
            node.start()
        for node in self.nodes:
            node.wait_up()
        self._write_known_hosts()

    def _write_client(self) -> None:
        ssh = self.home / ".ssh"
        ssh.mkdir(parents=True, mode=0o700)
        make_key(ssh / "id_ed25519", "client")

    def _make_node(self, number: int, namespace: str, address: str) -> Node:
        folder = self.folder / f"node-{number}"
        for name in ("etc", "home", "dev"):
            (folder / name).mkdir(parents=True)
        if self.disk:
            mount_memory(folder / "home", self.disk)
        os.chown(folder / "home", UID, UID)
        path = f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin"
        if self.npus:
            path = ascend.install(folder, self.npus, number) + ":" + path
        make_key(folder / "ssh_host_key", f"node-{number}")
        (folder / "etc" / "testbed_keys").write_text((self.home / ".ssh/id_ed25519.pub").read_text())
        (folder / "boot_id").write_text(Path("/proc/sys/kernel/random/uuid").read_text())
        config = {"folder": folder, "port": self.port, "address": address, "path": path, "user": USER}
        (folder / "sshd_config").write_text(_SSHD.format(**config))
        write_accounts(folder / "etc")
        name = f"node-{number}"
        sshd = [find_program("sshd"), "-D", "-e", "-f", str(folder / "sshd_config")]
        facts = {"name": name, "folder": str(folder), "user": USER, "expose": self.expose, "path": path, "sshd": sshd}
        (folder / "node.json").write_text(json.dumps(facts))
        argv = ["nsenter", f"--net=/run/netns/{namespace}", "unshare", "--mount", "--uts", "--ipc", "--pid", "--fork"]
        argv += ["--kill-child", sys.executable, str(Path(__file__).with_name("init.py")), str(folder / "node.json")]
        interface = f"ob{self.id}n{number}"
        return Node(name, number, address, self.port, USER, UID, namespace, interface, folder, argv)

    def _write_hosts(self, node: Node) -> None:
        lines = ["127.0.0.1 localhost", *(f"{other.address} {other.name}" for other in self.nodes)]
        (node.folder / "etc" / "hosts").write_text("\n".join(lines) + "\n")
        (node.folder / "etc" / "hostname").write_text(node.name + "\n")

    def _write_known_hosts(self) -> None:
        ssh = self.home / ".ssh"
        known, config = [], []
        for node in self.nodes:
            key = " ".join((node.folder / "ssh_host_key.pub").read_text().split()[:2])
            host = node.address if node.port == 22 else f"[{node.address}]:{node.port}"
            known.append(f"{host} {key}\n")
            config.append(
                _CLIENT.format(name=node.name, address=node.address, port=node.port, user=USER, home=self.home)
            )
        (ssh / "known_hosts").write_text("".join(known))
        (ssh / "config").write_text("\n".join(config))

    def environment(self) -> dict[str, str]:
        """What a client must set: a home whose ~/.ssh reaches the nodes, and no agent or XDG folder of its own."""
        return {
            "HOME": str(self.home),
            "SSH_AUTH_SOCK": "",
            "XDG_STATE_HOME": "",
            "XDG_CONFIG_HOME": "",
            "XDG_CACHE_HOME": "",
        }

    def inventory(self, name: str = "testbed", devices: int = 8) -> str:
        """An inventory of the nodes as YAML."""
        device = "Ascend" if self.npus else "CPU"
        lines = [f"name: {name}", "backend: ssh", f"device: {device}", "defaults:"]
        lines += [f"  python: {json.dumps(sys.executable)}", f"  devices: {self.npus or devices}", "nodes:"]
        lines += [f"  - {{name: {node.name}, host: {node.name}, address: {node.address}}}" for node in self.nodes]
        return "\n".join(lines) + "\n"


def make_key(path: Path, comment: str) -> None:
    """An SSH key pair without a passphrase."""
    keygen = find_program("ssh-keygen")
    argv = [keygen or "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=10)
    if result.returncode != 0:
        raise TestbedError(f"ssh-keygen: {result.stderr}")


def write_accounts(etc: Path) -> None:
    """The machine's accounts and the nodes' user, whose password is ``*``: none, but not locked either."""
    passwd, group = Path("/etc/passwd").read_text(), Path("/etc/group").read_text()
    (etc / "passwd").write_text(f"{passwd}{USER}:x:{UID}:{UID}::/home/{USER}:/bin/sh\n")
    (etc / "group").write_text(f"{group}{USER}:x:{UID}:\n")
    (etc / "shadow").write_text(f"{Path('/etc/shadow').read_text()}{USER}:*:19000:0:99999:7:::\n")
    (etc / "shadow").chmod(0o640)
    if "sshd:" not in passwd:
        raise TestbedError("no account sshd for privilege separation; reinstall openssh-server")

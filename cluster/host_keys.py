"""Host keys of nodes: what they offer, what vouches for it, and what a connection accepts."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fabric
import paramiko

from cluster.backend import NodeError, PerNode
from cluster.hosts_lock import Pin, lock_beside, read_lock
from cluster.known_hosts import find_known_host, fingerprint, known_hosts_files, known_name
from cluster.transport import fan_out
from ostrain.plan import NodeAccess

# Without a handler Python prints paramiko's threads' tracebacks; their errors reach us as exceptions.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

# The kinds a host may offer, the best first; each is asked for by itself.
KINDS = {
    "ssh-ed25519": ("ssh-ed25519",),
    "ecdsa": ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"),
    "ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256"),
}


@dataclass(frozen=True)
class Offered:
    """What a node offers. name: as in known_hosts; known: place in the user's known_hosts by key kind, empty for none;
    other: kinds for which known_hosts has another key."""

    name: str
    pins: tuple[Pin, ...]
    known: Mapping[str, str]
    other: frozenset[str]


def look_up_name(connection: Any) -> str:
    """The name a host's keys are known under: its alias, or host and port as connected to."""
    alias = connection.ssh_config.get("hostkeyalias")
    return str(alias) if alias else known_name(connection.host, connection.port)


def known_as(access: NodeAccess) -> str:
    """The name a node's keys are known under, without connecting."""
    return look_up_name(fabric.Connection(access.host, user=access.user or None, port=access.port or None))


def load_pinned(connection: Any, inventory: str) -> bool:
    """Accept only pinned keys of a host that the lock beside its inventory names; False where it does not name it."""
    name, wire = look_up_name(connection), known_name(connection.host, connection.port)
    pins = [pin for pin in read_lock(lock_beside(inventory)) if pin.host == name]
    for pin in pins:
        entry = paramiko.hostkeys.HostKeyEntry.from_line(f"{wire} {pin.kind} {pin.key}")
        if entry is not None and entry.key is not None:
            connection.client.get_host_keys().add(wire, pin.kind, entry.key)
    return bool(pins)


def vouched(connection: Any, inventory: str) -> dict[str, str]:
    """Kind and fingerprint of an open connection's host key, and the place that vouches for it."""
    key = connection.transport.get_remote_server_key()
    name = look_up_name(connection)
    pinned = any(pin.host == name and pin.key == key.get_base64() for pin in read_lock(lock_beside(inventory)))
    source = "pinned in hosts.lock" if pinned else f"known from {find_known_host(name, key, connection.ssh_config)}"
    return {"type": key.get_name(), "fingerprint": fingerprint(key), "source": source}


def scan(nodes: Mapping[str, NodeAccess], *, timeout: float = 10.0) -> PerNode[Offered]:
    """What every node offers, all at once. Nobody logs in and nothing is trusted."""
    return fan_out(dict(nodes.items()), lambda access: _scan(_name_of(nodes, access), access, timeout))


def _name_of(nodes: Mapping[str, NodeAccess], access: NodeAccess) -> str:
    return next(name for name, one in nodes.items() if one is access)


def _scan(node: str, access: NodeAccess, timeout: float) -> Offered:
    connection = fabric.Connection(access.host, user=access.user or None, port=access.port or None)
    name, pins = look_up_name(connection), []
    problem: Exception = OSError("it offers no key of a known kind")
    for kinds in KINDS.values():
        try:
            key = _offered_key(node, connection, access, kinds, timeout)
        except (OSError, EOFError, paramiko.SSHException) as error:
            problem = error
            if isinstance(error, OSError):
                break  # nothing answers: the other kinds will not, either
            continue
        pins.append(Pin(name, key.get_name(), key.get_base64(), node))
    if not pins:
        raise NodeError(
            "unreachable", f"{access.host} shows no host key", node=node, why=str(problem) or type(problem).__name__,
            next_step="check that the node is up and that sshd answers there",
        )  # fmt: skip
    return _compared(name, tuple(pins), connection)


def _offered_key(
    node: str, connection: Any, access: NodeAccess, kinds: tuple[str, ...], timeout: float
) -> paramiko.PKey:
    """The host key of one kind. SSHException where the host has none."""
    sock = _socket(node, connection, access, timeout)
    transport = paramiko.Transport(sock)
    try:
        options = transport.get_security_options()
        options.key_types = tuple(kind for kind in kinds if kind in options.key_types) or options.key_types
        transport.start_client(timeout=timeout)
        return transport.get_remote_server_key()
    finally:
        transport.close()


def _socket(node: str, connection: Any, access: NodeAccess, timeout: float) -> Any:
    """A way to the node's sshd; through its jump host where ~/.ssh/config names one, whose key is verified."""
    gateway = connection.gateway
    if isinstance(gateway, fabric.Connection):
        from cluster.ssh import make_strict
        from cluster.ssh_errors import connect_error

        make_strict(gateway, access.inventory)
        try:
            gateway.open()
        except Exception as error:
            raise connect_error(node, gateway, error) from error
        return gateway.transport.open_channel("direct-tcpip", (connection.host, int(connection.port)), ("", 0))
    if isinstance(gateway, str):
        return paramiko.ProxyCommand(gateway)
    return socket.create_connection((connection.host, int(connection.port)), timeout=timeout)


def _compared(name: str, pins: tuple[Pin, ...], connection: Any) -> Offered:
    known, other = {}, set()
    keys = paramiko.HostKeys()
    for file in known_hosts_files(connection.ssh_config):
        if file.is_file():
            with contextlib.suppress(OSError):  # not readable: as good as not there, a connection tells
                keys.load(str(file))
    theirs = keys.lookup(name) or {}
    for pin in pins:
        entry = paramiko.hostkeys.HostKeyEntry.from_line(f"{name} {pin.kind} {pin.key}")
        place = find_known_host(name, entry.key, connection.ssh_config) if entry is not None else ""
        known[pin.kind] = place
        if not place and pin.kind in theirs:
            other.add(pin.kind)
    return Offered(name, pins, known, frozenset(other))


def trust_command(node: str, inventory: str) -> str:
    """The command that pins a node's keys; empty where no inventory lists it."""
    import shlex

    return f"ostrain hosts trust {shlex.quote(_shown(inventory))} {shlex.quote(node)}" if inventory else ""


def _shown(inventory: str) -> str:
    """An inventory's name where it lies in the user's folder of inventories, else its path."""
    from ostrain.paths import config_dir

    file = Path(inventory)
    return file.stem if file.parent == config_dir() / "clusters" else inventory

"""What went wrong with an SSH connection, as errors for people."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import paramiko

from cluster.backend import NodeError
from cluster.host_keys import look_up_name, trust_command
from cluster.hosts_lock import lock_beside, read_lock
from cluster.known_hosts import find_known_host, fingerprint, keyscan_command, known_name, user_file


class UnknownHostKey(paramiko.SSHException):  # type: ignore[misc]
    """A host none of whose keys is known. ``name`` is as in known_hosts: ``host`` or ``[host]:port``."""

    def __init__(self, name: str, key: Any) -> None:
        super().__init__(f"the host key of {name} is not known")
        self.name = name
        self.key = key


def broken(node: str, error: BaseException) -> NodeError:
    """An open connection that does not carry any more."""
    return NodeError(
        "unreachable",
        "the connection to the node broke",
        node=node,
        why=str(error) or type(error).__name__,
        next_step="check the network; what runs on the node goes on",
    )


def connect_error(node: str, connection: Any, error: Exception, inventory: str = "") -> Exception:
    """NodeError for everything that can happen while connecting; other exceptions as they are.

    inventory: file that lists the node, beside which its keys may be pinned.
    """
    if isinstance(error, UnknownHostKey):
        return _unknown_key(node, connection, error, inventory)
    if isinstance(error, paramiko.BadHostKeyException):
        return _changed_key(node, connection, error, inventory)
    if isinstance(error, paramiko.AuthenticationException):
        return _refused(node, connection, error)
    if isinstance(error, OSError | EOFError | paramiko.SSHException):
        return _unreachable(node, connection, error)
    return error


def _place(connection: Any) -> str:
    """``name (address:port)``."""
    return f"{connection.original_host} ({connection.host}:{connection.port})"


def _unknown_key(node: str, connection: Any, error: UnknownHostKey, inventory: str) -> NodeError:
    command = trust_command(node, inventory)
    command = command or keyscan_command(error.name, error.key, user_file(connection.ssh_config))
    return NodeError(
        "host_key_unknown",
        f"the host key of {error.name} is not known",
        node=node,
        why=f"it offers {error.key.get_name()} {fingerprint(error.key)}",
        next_step=f"compare that fingerprint with the node's own (ssh-keygen -lf on it), then trust it: {command}",
    )


def _changed_key(node: str, connection: Any, error: Any, inventory: str) -> NodeError:
    name = known_name(error.hostname, connection.port)
    lock = lock_beside(inventory)
    if any(pin.host == look_up_name(connection) for pin in read_lock(lock)):
        was, now = fingerprint(error.expected_key), fingerprint(error.key)
        return NodeError(
            "host_key_changed",
            f"the host key of {name} is not the pinned one",
            node=node,
            why=f"{lock} says {was}, the node offers {now}: it was set up anew, or somebody stands in between",
            next_step=f"only if it was set up anew: {trust_command(node, inventory)} --replace",
        )
    place = find_known_host(name, error.expected_key, connection.ssh_config) or "known_hosts"
    was, now = fingerprint(error.expected_key), fingerprint(error.key)
    return NodeError(
        "host_key_changed",
        f"the host key of {name} has changed",
        node=node,
        why=f"{place} says {was}, the node offers {now}: it was set up anew, or somebody stands in between",
        next_step=f"only if it was set up anew: ssh-keygen -R {shlex.quote(name)}, "
        f"then {keyscan_command(name, error.key, user_file(connection.ssh_config))}",
    )


def _refused(node: str, connection: Any, error: Exception) -> NodeError:
    kwargs = connection.connect_kwargs
    keys = [str(name) for name in kwargs.get("key_filename") or []]
    if kwargs.get("look_for_keys"):
        names = ("id_rsa", "id_ecdsa", "id_ed25519")
        keys += [str(path) for name in names if (path := Path.home() / ".ssh" / name).exists()]
    if kwargs.get("allow_agent") and os.environ.get("SSH_AUTH_SOCK"):
        keys.append("the keys of the SSH agent")
    tried = ", ".join(dict.fromkeys(keys)) or "no key at all"
    why = f"tried {tried}: {error}"
    if isinstance(error, paramiko.PasswordRequiredException):
        why = f"tried {tried}: a key has a passphrase and no SSH agent holds it (ssh-add)"
    return NodeError(
        "auth_failed",
        f"{_place(connection)} refuses the user {connection.user}",
        node=node,
        why=why,
        next_step="correct `user` or `identity_file` in the inventory or ~/.ssh/config, "
        f"or let the key in: ssh-copy-id -p {connection.port} {connection.user}@{connection.host}",
    )


def _unreachable(node: str, connection: Any, error: Exception) -> NodeError:
    inner = getattr(error, "errors", None)  # NoValidConnectionsError: one error an address
    why = "; ".join(f"{address[0]}: {cause}" for address, cause in inner.items()) if inner else str(error)
    if why == "No existing session":  # paramiko's words for a handshake that was not over in time
        why = "something answers there, but it does not speak SSH (no banner in time)"
    return NodeError(
        "unreachable",
        f"cannot reach {_place(connection)}",
        node=node,
        why=why or type(error).__name__,
        next_step=f"check that the node is up: ssh -p {connection.port} {connection.user}@{connection.host} true",
    )

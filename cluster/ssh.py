"""The SSH transport. Host keys are verified, passwords never asked for, every wait is bounded.

fabric reads ~/.ssh/config and opens the connection; policy, quoting and channels are ours: fabric's own policy trusts
any key and its ``env`` is not quoted.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fabric
import paramiko

from cluster.backend import NodeError
from cluster.host_keys import load_pinned, vouched
from cluster.known_hosts import known_hosts_files, known_name
from cluster.ssh_errors import UnknownHostKey, broken, connect_error
from cluster.transport import Input, LineSplitter, Result, blocks
from ostrain.plan import NodeAccess

CONNECT_TIMEOUT = 10.0
KEEPALIVE = 15
_SLICE = 0.5  # seconds a blocking read or write lasts before the time is looked at
_BLOCK = 1 << 16


class RefuseUnknown(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
    """Refuses, and hands on what is needed to say how the key can be trusted."""

    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
        raise UnknownHostKey(hostname, key)


def make_strict(connection: Any, inventory: str = "") -> None:
    """Verify the host keys of a fabric connection and of every jump host before it.

    Where the hosts.lock beside ``inventory`` names a host, its keys count and no others.
    """
    client = connection.client
    client.set_missing_host_key_policy(RefuseUnknown())
    if not load_pinned(connection, inventory):
        load_known(connection)
    use_only_given_keys(connection)
    if isinstance(connection.gateway, fabric.Connection):
        make_strict(connection.gateway, inventory)


def load_known(connection: Any) -> None:
    """Accept the keys of the user's and the system's known hosts."""
    client = connection.client
    for file in known_hosts_files(connection.ssh_config):
        if file.is_file():
            client.load_system_host_keys(str(file))
    alias = connection.ssh_config.get("hostkeyalias")
    if alias:
        keys = client._system_host_keys.lookup(alias) or {}
        for kind, key in keys.items():
            client.get_host_keys().add(known_name(connection.host, connection.port), kind, key)


def use_only_given_keys(connection: Any) -> None:
    """``IdentitiesOnly``, and identity files that do not exist are passed over, as OpenSSH does."""
    kwargs = connection.connect_kwargs
    names = kwargs.get("key_filename") or []
    names = [names] if isinstance(names, str) else names
    kwargs["key_filename"] = [name for name in map(os.path.expanduser, names) if os.path.exists(name)]
    only = str(connection.ssh_config.get("identitiesonly", "no")).lower() == "yes"
    kwargs.update(allow_agent=not only, look_for_keys=not only)
    kwargs.update(banner_timeout=CONNECT_TIMEOUT, auth_timeout=CONNECT_TIMEOUT, channel_timeout=CONNECT_TIMEOUT)


class SSHTransport:
    """One node over one SSH connection, opened when first used and again after it broke. Usable from many threads."""

    sessions = True  # a command is a round trip and a process: the agent's session (cluster.session) saves them

    def __init__(self, node: str, access: NodeAccess, *, connect_timeout: float = CONNECT_TIMEOUT) -> None:
        self.node = node
        self._access = access
        self._timeout = connect_timeout
        self._lock = threading.Lock()
        self._connection: Any = None

    def _open(self) -> Any:
        """An open paramiko transport."""
        with self._lock:
            if self._connection is not None and self._connection.is_connected:
                return self._connection.transport
            self._drop()
            connection = self._make()
            try:
                connection.open()
            except Exception as error:  # translated, or raised as it is
                connection.close()
                raise connect_error(self.node, connection, error, self._access.inventory) from error
            connection.transport.set_keepalive(KEEPALIVE)
            self._connection = connection
            return connection.transport

    def _make(self) -> Any:
        access = self._access
        if access.identity_file and not Path(access.identity_file).expanduser().exists():
            raise NodeError(
                "auth_failed",
                f"the identity file {access.identity_file} does not exist",
                node=self.node,
                next_step="correct `identity_file` in the inventory",
            )
        kwargs = {"key_filename": [access.identity_file]} if access.identity_file else {}
        try:
            connection = fabric.Connection(
                access.host, user=access.user or None, port=access.port or None, connect_kwargs=kwargs
            )
            if "connecttimeout" not in connection.ssh_config:
                connection.connect_timeout = self._timeout
            make_strict(connection, access.inventory)
        except (OSError, ValueError, paramiko.SSHException) as error:
            raise NodeError(
                "protocol", "the SSH configuration cannot be used", node=self.node, why=str(error)
            ) from error
        return connection

    def _session(self, argv: Sequence[str], timeout: float) -> Any:
        """A channel that runs ``argv``: one string for the login shell, every word quoted."""
        transport = self._open()
        try:
            channel = transport.open_session(timeout=min(timeout, CONNECT_TIMEOUT))
            channel.settimeout(_SLICE)
            channel.exec_command(shlex.join(argv))
        except (OSError, EOFError, paramiko.SSHException) as error:
            self.close()
            raise broken(self.node, error) from error
        return channel

    def run(self, argv: Sequence[str], input: Input = b"", *, timeout: float) -> Result:
        deadline = time.monotonic() + timeout
        channel = self._session(argv, timeout)
        out, err = bytearray(), bytearray()
        try:
            threads = [
                threading.Thread(target=_write, args=(channel, input, deadline), daemon=True),
                threading.Thread(target=_read, args=(channel.recv_stderr, err, deadline), daemon=True),
            ]
            for thread in threads:
                thread.start()
            _read(channel.recv, out, deadline)
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
            if not channel.status_event.wait(max(0.0, deadline - time.monotonic())):
                self.close()  # whatever hangs there, the next call must not wait behind it
                raise broken(self.node, TimeoutError(f"no answer within {timeout:g} s"))
            if channel.exit_status == -1:
                self.close()
                raise broken(self.node, ConnectionError("the connection broke before the command ended"))
            return Result(channel.exit_status, bytes(out), bytes(err))
        finally:
            channel.close()

    def host_key(self) -> dict[str, str]:
        """Kind, fingerprint and voucher of the node's host key (``cluster.host_keys.vouched``)."""
        self._open()
        return vouched(self._connection, self._access.inventory)

    def stream(self, argv: Sequence[str], input: bytes) -> SSHStream:
        stream = SSHStream(self, self._session(argv, CONNECT_TIMEOUT))
        stream.send(input)
        return stream

    def _drop(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()

    def close(self) -> None:
        with self._lock:
            self._drop()


def _write(channel: Any, input: Input, deadline: float) -> None:
    """Send everything and end the input. A command that ends early tells by its exit code."""
    with contextlib.suppress(OSError):
        for block in blocks(input):
            _send(channel, block, deadline)
        channel.shutdown_write()


def _send(channel: Any, data: bytes, deadline: float) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[channel.send(view[:_BLOCK]) :]
        except TimeoutError:
            if time.monotonic() > deadline:
                raise


def _read(receive: Any, into: bytearray, deadline: float) -> None:
    """Read to the end, or until the deadline: the caller sees by the missing exit status."""
    while time.monotonic() < deadline:
        try:
            data = receive(_BLOCK)
        except TimeoutError:
            continue
        except OSError:
            return
        if not data:
            return
        into += data


class SSHStream:
    """A channel whose output is read line by line."""

    def __init__(self, transport: SSHTransport, channel: Any) -> None:
        self._transport = transport
        self._channel = channel
        self._closed = False

    def send(self, data: bytes) -> None:
        try:
            _send(self._channel, data, time.monotonic() + CONNECT_TIMEOUT)
        except OSError as error:
            raise broken(self._transport.node, error) from error

    def lines(self, silence: float) -> Iterator[bytes]:
        splitter, heard = LineSplitter(), time.monotonic()
        while not self._closed:
            try:
                data = self._channel.recv(_BLOCK)
            except TimeoutError:
                if time.monotonic() - heard > silence:
                    self._transport.close()
                    raise broken(self._transport.node, TimeoutError(f"nothing heard for {silence:g} s")) from None
                continue
            heard = time.monotonic()
            if not data:
                break
            yield from splitter.feed(data)
        if not self._closed and not self._channel.status_event.wait(1.0):
            self._transport.close()
            raise broken(self._transport.node, ConnectionError("the connection broke"))

    def close(self) -> None:
        self._closed = True
        self._channel.close()

"""``hosts.lock``: host keys of a cluster, pinned and reviewed, beside its inventory. Lines as in known_hosts.

``host algorithm base64 comment``; a host is written as OpenSSH looks it up, ``name`` or ``[name]:port``. So the file
serves ssh, too: ``UserKnownHostsFile …/hosts.lock``. Inventories in one folder share it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from models.files import write_atomic
from ostrain.errors import OstrainError
from ostrain.states import ExitCode

FILE = "hosts.lock"
_HEAD = """\
# Host keys that ostrain accepts for the nodes of the inventories in this folder: `ostrain hosts trust CLUSTER`.
# A host that stands here is known by these keys alone, whatever ~/.ssh/known_hosts says. Review changes like code.
"""


@dataclass(frozen=True)
class Pin:
    """One line. key: base64 as in known_hosts; note: the rest of the line, the node's name."""

    host: str
    kind: str
    key: str
    note: str = ""

    @property
    def fingerprint(self) -> str:
        """As OpenSSH prints it."""
        digest = hashlib.sha256(base64.b64decode(self.key)).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

    def line(self) -> str:
        return f"{self.host} {self.kind} {self.key}" + (f" {self.note}" if self.note else "")


def lock_beside(inventory: str) -> Path | None:
    """The lock of an inventory file; None where there is no inventory file. It need not exist."""
    return Path(inventory).with_name(FILE) if inventory else None


def read_lock(file: Path | None) -> list[Pin]:
    """Its pins. OstrainError (exit 4) for a file that cannot be read or holds a broken line: a lock half understood
    would let in what it was made to keep out."""
    if file is None or not file.exists():
        return []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise _broken(f"{file}", str(error)) from error
    pins = []
    for number, line in enumerate(lines, 1):
        words = line.split(None, 3)
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 3:
            raise _broken(f"{file}:{number}", "a line holds a host, an algorithm and a key")
        try:
            base64.b64decode(words[2], validate=True)
        except (binascii.Error, ValueError) as error:
            raise _broken(f"{file}:{number}", f"the key is no base64: {error}") from error
        pins.append(Pin(words[0], words[1], words[2], words[3] if len(words) > 3 else ""))
    return pins


def _broken(where: str, why: str) -> OstrainError:
    return OstrainError(
        "the pinned host keys cannot be read", where=where, why=why,
        next_step="restore the file, or delete it and pin again: ostrain hosts trust CLUSTER",
        exit_code=ExitCode.UNREACHABLE,
    )  # fmt: skip


def write_lock(file: Path, pins: Iterable[Pin]) -> None:
    """Replace the file as a whole. OstrainError where the folder cannot be written."""
    text = _HEAD + "".join(pin.line() + "\n" for pin in pins)
    try:
        write_atomic(file, text.encode())
    except OSError as error:
        raise OstrainError(
            "the host keys cannot be pinned", where=str(file), why=error.strerror or str(error),
            next_step="copy the inventory to a folder of yours, ~/.config/ostrain/clusters, and pin there",
        ) from error  # fmt: skip


def merged(old: Iterable[Pin], hosts: Iterable[str], new: Iterable[Pin]) -> list[Pin]:
    """Pins in which ``hosts`` have exactly the new keys; other hosts stay as they are."""
    replaced = set(hosts)
    return [pin for pin in old if pin.host not in replaced] + list(new)

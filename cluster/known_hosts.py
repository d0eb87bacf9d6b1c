"""Known hosts: which files hold them, where a key stands in them, and the command that adds one."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import paramiko


def known_hosts_files(options: Mapping[str, Any]) -> list[Path]:
    """Known-hosts files of a host in OpenSSH's order of use: the user's, then the system's."""
    user = str(options.get("userknownhostsfile", "~/.ssh/known_hosts ~/.ssh/known_hosts2"))
    system = str(options.get("globalknownhostsfile", "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"))
    return [Path(name).expanduser() for name in shlex.split(user) + shlex.split(system) if name != "none"]


def known_name(host: str, port: int) -> str:
    """A host's name in known_hosts."""
    return host if int(port) == 22 else f"[{host}]:{port}"


def fingerprint(key: Any) -> str:
    """SHA-256 fingerprint as OpenSSH prints it."""
    digest = hashlib.sha256(key.asbytes()).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def keyscan_command(name: str, key: Any, file: Path) -> str:
    """The command that fetches a host's key. ``name`` is as in known_hosts."""
    host, _, port = name[1:].partition("]:") if name.startswith("[") else (name, "", "22")
    kind = {"ssh-ed25519": "ed25519", "ssh-rsa": "rsa"}.get(key.get_name(), "ecdsa")
    return f"ssh-keyscan -t {kind} -p {port} {shlex.quote(host)} >> {shlex.quote(str(file))}"


def user_file(options: Mapping[str, Any]) -> Path:
    """Where a newly trusted key goes."""
    return known_hosts_files(options)[0]


def find_known_host(name: str, key: Any, options: Mapping[str, Any]) -> str:
    """``file:line`` of a known host's key; empty when it is nowhere."""
    for file in known_hosts_files(options):
        lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
        for number, line in enumerate(lines, 1):
            words = line.split()
            if len(words) >= 3 and words[2] == key.get_base64() and _matches(words[0], name):
                return f"{file}:{number}"
    return ""


def _matches(hosts: str, name: str) -> bool:
    for host in hosts.split(","):
        if host == name or (host.startswith("|1|") and paramiko.HostKeys.hash_host(name, host) == host):
            return True
    return False

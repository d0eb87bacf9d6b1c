"""Process 1 of a node: sets up its view of the file system and its name, starts sshd, reaps. Standard library only.

python init.py node.json
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, timeout=10)


def mirror(folder: str, keep: Path, additions: dict[str, str]) -> None:
    """Make a folder private: a tmpfs with links to what was there, and ``additions`` (name -> source) in its place."""
    real = keep / folder.strip("/").replace("/", "-")
    real.mkdir(parents=True, exist_ok=True)  # there from before a reboot, its mounts gone
    mount("--bind", folder, str(real))
    mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", folder)
    for entry in os.scandir(real):
        if entry.name not in additions:
            # A link is copied: relative ones would lead elsewhere from the new place.
            os.symlink(os.readlink(entry.path) if entry.is_symlink() else entry.path, os.path.join(folder, entry.name))
    for name, source in additions.items():
        place = os.path.join(folder, name)
        if os.path.isdir(source):
            os.mkdir(place)
        else:
            Path(place).touch()
        mount("--bind", source, place)


def closed_ancestor(path: str) -> str | None:
    """The topmost folder above ``path`` that others may not pass."""
    parents = list(reversed(Path(path).parents))
    return next((str(parent) for parent in parents if not parent.stat().st_mode & 0o001), None)


def expose(paths: list[str], keep: Path) -> None:
    """Let the node's user reach ``paths`` below folders that are closed to it; hide the rest of those folders."""
    hidden = {path: above for path in paths if (above := closed_ancestor(path)) is not None}
    kept = {}
    for number, path in enumerate(hidden):
        kept[path] = keep / f"exposed-{number}"
        kept[path].mkdir(parents=True, exist_ok=True)
        mount("--rbind", path, str(kept[path]))
    for above in sorted(set(hidden.values())):
        mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", above)
    for path in sorted(hidden):
        os.makedirs(path, exist_ok=True)
        mount("--rbind", str(kept[path]), path)


def set_up(node: dict[str, Any]) -> None:
    folder = Path(node["folder"])
    keep = folder / "keep"
    mount("--make-rprivate", "/")
    mount("-t", "proc", "proc", "/proc")
    mount("--bind", str(folder / "boot_id"), "/proc/sys/kernel/random/boot_id")
    expose(node["expose"], keep)
    mirror("/etc", keep, {name: str(folder / "etc" / name) for name in os.listdir(folder / "etc")})
    mirror("/home", keep, {node["user"]: str(folder / "home")})
    mirror("/dev", keep, {name: str(folder / "dev" / name) for name in os.listdir(folder / "dev")})
    mirror("/usr/local", keep, {"Ascend": str(folder / "Ascend")} if (folder / "Ascend").exists() else {})
    mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm")
    mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", "/run")
    os.mkdir("/run/sshd", 0o755)
    socket.sethostname(node["name"])


def main() -> None:
    folder = Path(sys.argv[1]).parent
    node = json.loads(Path(sys.argv[1]).read_text())
    set_up(node)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    log = open(folder / "sshd.log", "ab")  # noqa: SIM115 - open as long as the node lives
    subprocess.Popen(node["sshd"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    (folder / "ready").touch()
    while True:
        try:
            os.wait()
        except ChildProcessError:
            signal.pause()  # sshd was stopped; others may start it again


if __name__ == "__main__":
    main()

"""Bridge, namespaces and addresses; one /24 a testbed; what dead owners left is cleared away."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

BASE = Path("/var/tmp/ostrain-testbed")
PREFIX = "ostrain-"
NEEDED = {"ip": "iproute2", "sshd": "openssh-server", "ssh-keygen": "openssh-client", "unshare": "util-linux"}


class TestbedError(RuntimeError):
    """A testbed cannot be built here. Says what is missing and how to get it."""

    __test__ = False


def require_parts() -> None:
    """TestbedError unless this machine can hold a testbed."""
    if os.geteuid() != 0:
        raise TestbedError("a testbed needs root: it makes network namespaces; run it as root or with sudo")
    missing = [package for name, package in NEEDED.items() if find_program(name) is None]
    if missing:
        raise TestbedError("missing: {0}; apt-get install -y {0}".format(" ".join(missing)))


def find_program(name: str) -> str | None:
    """Absolute path: sshd executes itself again and takes no other."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin:/bin")


def ip(*lines: str, namespace: str = "") -> None:
    """Run ``ip`` commands in one go."""
    argv = ["ip", *(["-n", namespace] if namespace else []), "-batch", "-"]
    result = subprocess.run(argv, input="\n".join(lines) + "\n", capture_output=True, text=True, timeout=30)
    if result.returncode != 0:
        raise TestbedError(f"ip: {result.stderr.strip()} (does this machine allow network namespaces?)")


@contextlib.contextmanager
def base_lock() -> Iterator[None]:
    BASE.mkdir(parents=True, exist_ok=True)
    with open(BASE / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def process_start(pid: int) -> int:
    """Clock ticks since boot at which a process started; 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    fields = text[text.rfind(")") + 2 :].split()
    return 0 if fields[0] in "ZX" else int(fields[19])


def claim(keep: bool) -> tuple[str, Path, str]:
    """A new testbed's id, folder and subnet (``10.x.y``). Clears what dead owners left first."""
    with base_lock():
        clear_leftovers()
        taken = {read_owner(folder).get("subnet") for folder in folders()} | subnets_in_use()
        subnet = next((net for net in candidates() if net not in taken), None)
        if subnet is None:
            raise TestbedError("no free 10.x.y.0/24 for a testbed")
        bed_id = secrets.token_hex(2)
        folder = BASE / bed_id
        folder.mkdir(mode=0o755)
        owner = {"pid": os.getpid(), "start": process_start(os.getpid()), "keep": keep, "subnet": subnet}
        (folder / "owner.json").write_text(json.dumps(owner))
    return bed_id, folder, subnet


def candidates() -> Iterator[str]:
    yield from (f"10.{second}.{third}" for second in range(211, 230) for third in range(1, 250))


def subnets_in_use() -> set[str]:
    result = subprocess.run(["ip", "-j", "route", "show"], capture_output=True, text=True, timeout=10, check=True)
    return {route["dst"].rsplit(".", 1)[0] for route in json.loads(result.stdout or "[]")}


def folders() -> list[Path]:
    return [path for path in sorted(BASE.iterdir()) if path.is_dir()] if BASE.is_dir() else []


def read_owner(folder: Path) -> dict[str, object]:
    try:
        owner: dict[str, object] = json.loads((folder / "owner.json").read_text())
    except (OSError, ValueError):
        return {}
    return owner


def clear_leftovers() -> None:
    """Destroy every testbed whose owner is gone."""
    for folder in folders():
        owner = read_owner(folder)
        alive = process_start(int(str(owner.get("pid", 0)))) == owner.get("start")
        if not alive and not owner.get("keep"):
            destroy(folder)


def destroy(folder: Path) -> None:
    """End a testbed's processes by their recorded ids, remove its interfaces, namespaces and files."""
    for file in folder.glob("*/pids.json"):
        with contextlib.suppress(OSError, ValueError):
            for pid, start in json.loads(file.read_text()):
                end_process(pid, start)
    namespaces = [path.name for path in Path("/run/netns").glob(f"{PREFIX}{folder.name}-*")]
    lines = [f"link del {name}" for name in interfaces_of(folder.name)] + [f"netns del {name}" for name in namespaces]
    argv = ["ip", "-force", "-batch", "-"]  # what is gone already is as good
    subprocess.run(argv, input="\n".join(lines) + "\n", capture_output=True, text=True, timeout=30)
    for _ in range(20):
        unmount_below(folder)
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)  # the last process of a node may still be letting go of its mounts
    raise TestbedError(f"{folder} cannot be removed")


def mount_memory(folder: Path, megabytes: int) -> None:
    """A file system of its own for a folder: one that can be filled up without harm to anybody."""
    argv = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0755", "tmpfs", str(folder)]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=10)
    if result.returncode != 0:
        raise TestbedError(f"mount: {result.stderr.strip()} (does this machine allow mounts?)")


def unmount_below(folder: Path) -> None:
    """Detach what was mounted below a testbed's folder; a file system goes when its last user does."""
    points = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for point in points:
        if point.startswith(f"{folder}/"):
            subprocess.run(["umount", "--lazy", point], capture_output=True, timeout=10)


def interfaces_of(bed_id: str) -> list[str]:
    names = sorted(os.listdir("/sys/class/net"))
    return [name for name in names if name == f"ob{bed_id}" or name.startswith(f"ob{bed_id}n")]


def end_process(pid: int, start: int, bound: float = 5.0) -> None:
    deadline = time.monotonic() + bound
    while start and process_start(pid) == start:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise TestbedError(f"process {pid} of a testbed cannot be ended")
        time.sleep(0.01)

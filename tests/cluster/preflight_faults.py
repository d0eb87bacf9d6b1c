"""What can be wrong with a node, each made so on the testbed's node-1, and put right again."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tests.testbed import Node, Testbed
from tests.testbed.ascend import VERSIONS, info_table

HOME = "/home/trainer"
ROOT = f"{HOME}/.ostrain"
# Python on the nodes: reads sitecustomize.py of the folder ~/patch, where a test has put one.
PYTHON = '#!/bin/sh\n[ -d "$HOME/patch" ] && export PYTHONPATH="$HOME/patch"\nexec {python} "$@"\n'


@dataclass
class Site:
    """A testbed of two nodes with NPUs, and what the command line is told about them."""

    bed: Testbed
    inventory: Path
    settings: list[str] = field(default_factory=list)

    @property
    def node(self) -> Node:
        return self.bed.nodes[1]

    def told(self, **changes: str) -> Callable[[], None]:
        """Another inventory entry for node-1; the way back."""
        text = self.inventory.read_text()
        document = yaml.safe_load(text)
        document["nodes"][1].update(changes)
        self.inventory.write_text(yaml.safe_dump(document))
        return lambda: self.inventory.write_text(text) and None

    def swap(self, path: Path, text: str) -> Callable[[], None]:
        """Other content of a file, seen on the node at once (its files are mounted one by one); the way back."""
        old = path.read_text() if path.exists() else None
        path.write_text(text)
        return (lambda: path.unlink()) if old is None else (lambda: path.write_text(old) and None)

    def ascend(self, place: str) -> Path:
        return self.node.folder / "Ascend" / place

    def patched(self, lines: str) -> Callable[[], None]:
        """Python on node-1 behaves otherwise."""
        folder = self.node.home / "patch"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(lines)
        return lambda: shutil.rmtree(folder)

    def process(self, script: str, *tags: str) -> Callable[[], None]:
        """A process on node-1, until it is ended."""
        line = f"env {' '.join(tags)} setsid sh -c '{script}' >/dev/null 2>&1 & echo $!"
        pid = int(self.node.exec(["sh", "-c", line]).stdout)
        time.sleep(0.2)
        return lambda: self.node.exec(["sh", "-c", f"kill -9 -{pid} 2>/dev/null; true"]) and None


def version(site: Site, place: str, old: str, new: str) -> Callable[[], None]:
    text = VERSIONS[place]
    assert old in text
    return site.swap(site.ascend(place), text.replace(old, new))


def metadata(name: str, version: str) -> str:
    return (
        "from importlib import metadata\nold = metadata.version\n"
        f"metadata.version = lambda name: {version!r} if name == {name!r} else old(name)\n"
    )


def known_hosts(site: Site) -> Callable[[], None]:
    """Another key for node-1 in the user's known_hosts."""
    file = site.bed.home / ".ssh" / "known_hosts"
    first, second = file.read_text().splitlines()
    return site.swap(file, f"{first}\n{second.split()[0]} {first.split(None, 1)[1]}\n")


def health(site: Site) -> Callable[[], None]:
    sick = info_table(2).replace("| 1     910B3               | OK   ", "| 1     910B3               | Alarm")
    back = site.swap(site.ascend("share/info"), sick)
    detail = site.swap(site.ascend("share/health-1"), "\tHealth Status : Alarm\n\tError Code : 80E01801\n")

    def undo() -> None:
        back()
        detail()

    return undo


def closed_device(site: Site) -> Callable[[], None]:
    path = site.node.folder / "dev" / "davinci1"
    path.chmod(0o600)
    return lambda: path.chmod(0o666)


def small_disk(site: Site) -> Callable[[], None]:
    site.node.exec(["mount", "-t", "tmpfs", "-o", "size=24m,mode=0777", "tmpfs", ROOT], as_root=True)
    return lambda: site.node.exec(["umount", "-l", ROOT], as_root=True) and None


def edited_code(site: Site) -> Callable[[], None]:
    bundle = next((site.node.home / ".ostrain" / "bundles").glob("[0-9a-f]*"))
    file = bundle / "models" / "train.py"
    return site.swap(file, file.read_text() + "# tried something\n")


def blackhole(site: Site) -> Callable[[], None]:
    route = ["blackhole", f"{site.bed.nodes[0].address}/32"]
    site.node.exec(["ip", "route", "add", *route], as_root=True)
    return lambda: site.node.exec(["ip", "route", "del", *route], as_root=True) and None


def sshd_gone(site: Site) -> Callable[[], None]:
    site.node.stop_sshd()
    return site.node.start_sshd


def listener(site: Site) -> Callable[[], None]:
    code = f'import socket,time; s=socket.create_server(("{site.node.address}",60003)); time.sleep(60)'
    path = site.node.home / "listen.py"
    path.write_text(code)
    back = site.process("exec python3 ~/listen.py")
    end = time.monotonic() + 10
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection((site.node.address, 60003), timeout=1):
            break
        time.sleep(0.05)
    return back


LEFT = ("OSTRAIN_RUN=old-abcdef", "OSTRAIN_AGENT_ID=999999:1", f"OSTRAIN_RUN_DIR={ROOT}/runs/old-abcdef/node-1")
HELD = info_table(2).replace(
    f"| {'No running processes found in NPU 1':<94} |",
    "| 1       0                 | 2290156       | VLLMEngineCore           | 56630                   |",
)
# line -> (what is done to node-1, a word that the verdict holds)
FAULTS: dict[str, tuple[Callable[[Site], Callable[[], None]], str]] = {
    "reach": (sshd_gone, "cannot reach"),
    "host_key": (known_hosts, "has changed"),
    "user": (lambda site: site.told(user="nobody"), "refuses the user nobody"),
    "clock": (lambda site: site.patched("import time\nold = time.time\ntime.time = lambda: old() + 90\n"), "ahead"),
    "setup": (lambda site: site.swap(site.node.home / "setup.sh", "exit 7\n"), "set up"),
    "python": (lambda site: site.patched("import sys\nsys.version = '3.12.1 (x)'\n"), "Python 3.12.1"),
    "mindspore": (lambda site: site.patched(metadata("mindspore", "2.9.0")), "mindspore 2.9.0"),
    "modules": (lambda site: site.patched(metadata("numpy", "2.1.0")), "numpy 2.1.0"),
    "programs": (
        lambda site: site.swap(site.node.home / "setup.sh", "export HCCL_BUFFSIZE=200 PATH=/usr/bin:/bin\n"),
        "msrun",
    ),
    "driver": (lambda site: version(site, "driver/version.info", "25.2.0", "25.3.0"), "driver 25.3.0"),
    "firmware": (lambda site: version(site, "firmware/version.info", "7.7.0.6", "7.7.0.8"), "firmware 7.7.0.8"),
    "cann": (lambda site: version(site, list(VERSIONS)[2], "8.3.RC1", "8.5.0"), "CANN 8.5.0"),
    "compatible": (lambda site: version(site, "driver/version.info", "7.7.99", "7.1.0"), "do not go together"),
    "devices": (closed_device, "device 1 may not be opened"),
    "health": (health, "device 1 Alarm"),
    "busy": (lambda site: site.swap(site.ascend("share/info"), HELD), "device 1 is in use"),
    "holders": (lambda site: site.process("exec sleep 60 9</dev/davinci1"), "device 1 is held open"),
    "leftovers": (lambda site: site.process("exec sleep 60", *LEFT), "old-abcdef"),
    "link": (lambda site: site.swap(site.ascend("share/link-1"), "link status: DOWN\n"), "link of device 1"),
    "tls": (lambda site: site.swap(site.ascend("share/tls-0"), "1\n"), "TLS of device 0 is on"),
    "address": (lambda site: site.told(address=f"{site.bed.subnet}.200"), "is not this node"),
    "route": (blackhole, "cannot reach the first node"),
    "ports": (listener, "port 60003 is taken"),
    "space": (small_disk, "free in"),
    "speed": (
        lambda site: site.patched(
            "import os, time\nold = os.write\n"
            "os.write = lambda f, data: (time.sleep(3.0 if len(data) > 99999 else 0), old(f, data))[1]\n"
        ),
        "MB/s",
    ),
    "files": (lambda site: site.swap(site.node.home / "weights.safetensors", "others"), "files differ"),
    "code": (edited_code, "the code is not what was pushed"),
    "environment": (
        lambda site: site.swap(site.node.home / "setup.sh", "export HCCL_BUFFSIZE=400\n"),
        "HCCL_BUFFSIZE differs",
    ),
}


@contextlib.contextmanager
def broken(site: Site, line: str) -> Iterator[str]:
    """node-1 with one fault; what the verdict has to say."""
    make, word = FAULTS[line]
    back = make(site)
    try:
        yield word
    finally:
        back()


def furnish(bed: Testbed, python: str) -> None:
    """What the job of the tests wants on every node."""
    for node in bed.nodes:
        texts = {"python3": PYTHON.format(python=json.dumps(python)), "setup.sh": "export HCCL_BUFFSIZE=200\n",
                 "weights.safetensors": "weights"}  # fmt: skip
        for name, text in texts.items():
            path = node.home / name
            path.write_text(text)
            path.chmod(0o755)

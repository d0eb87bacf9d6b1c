"""One node of a testbed, as the outside sees it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.testbed.network import TestbedError, end_process, ip, process_start


@dataclass
class Node:
    """``folder`` holds everything of the node; ``home`` is its user's home, also seen from outside."""

    name: str
    number: int
    address: str
    port: int
    user: str
    uid: int
    namespace: str
    interface: str
    folder: Path
    argv: list[str]
    holder: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    pid: int = 0

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def start(self) -> None:
        """Start process 1; ``wait_up`` waits for it."""
        with contextlib.suppress(FileNotFoundError):
            (self.folder / "ready").unlink()
        log = open(self.folder / "init.log", "ab")  # noqa: SIM115 - closed below
        with log:
            self.holder = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def wait_up(self, bound: float = 20.0) -> None:
        """Wait until sshd answers."""
        deadline = time.monotonic() + bound
        while not self._answers():
            if self.holder is None or self.holder.poll() is not None or time.monotonic() > deadline:
                logs = [self.folder / name for name in ("init.log", "sshd.log")]
                text = "".join(log.read_text(errors="replace") for log in logs if log.exists())
                raise TestbedError(f"{self.name} does not come up: {text.strip() or 'no message'}")
            time.sleep(0.01)
        assert self.holder is not None
        children = Path(f"/proc/{self.holder.pid}/task/{self.holder.pid}/children").read_text().split()
        self.pid = int(children[0])
        pids = [[pid, process_start(pid)] for pid in (self.pid, self.holder.pid)]
        (self.folder / "pids.json").write_text(json.dumps(pids))

    def _answers(self) -> bool:
        if not (self.folder / "ready").exists():
            return False
        try:
            with socket.create_connection((self.address, self.port), timeout=1.0) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def enter(self, as_root: bool = False) -> list[str]:
        """The command that runs another one inside the node."""
        user = [] if as_root else [f"--setuid={self.uid}", f"--setgid={self.uid}"]
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--uts", "--pid", *user, "--"]

    def exec(
        self, argv: Sequence[str], *, as_root: bool = False, input: bytes = b"", timeout: float = 30.0
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command inside the node, as its user; CalledProcessError when it fails."""
        path = json.loads((self.folder / "node.json").read_text())["path"]
        home = "/root" if as_root else f"/home/{self.user}"
        env = {"PATH": path + ":/usr/sbin:/sbin", "HOME": home, "LANG": "C.UTF-8"}
        command = [*self.enter(as_root), *argv]
        return subprocess.run(command, input=input, capture_output=True, timeout=timeout, check=True, env=env)

    def processes(self, tag: str) -> dict[int, str]:
        """Processes of the node with an environment entry ``tag`` (``OSTRAIN_RUN=…``), by their pid outside."""
        namespace = os.stat(f"/proc/{self.pid}/ns/pid").st_ino
        found = {}
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError):  # it ended meanwhile
                    inside = os.stat(f"/proc/{name}/ns/pid").st_ino == namespace
                    if inside and tag.encode() in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                        words = Path(f"/proc/{name}/cmdline").read_bytes().rstrip(b"\0")
                        if words:
                            found[int(name)] = words.replace(b"\0", b" ").decode("utf-8", "replace")
        return found

    def outside_pid(self, pid: int) -> int:
        """The pid outside of a process whose pid inside the node is given."""
        namespace = os.stat(f"/proc/{self.pid}/ns/pid").st_ino
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    if os.stat(f"/proc/{name}/ns/pid").st_ino == namespace:
                        lines = Path(f"/proc/{name}/status").read_text().splitlines()
                        ids = next(line for line in lines if line.startswith("NSpid:")).split()
                        if int(ids[-1]) == pid:
                            return int(name)
        raise TestbedError(f"no process {pid} on {self.name}")

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to a process by its pid inside the node."""
        os.kill(self.outside_pid(pid), number)

    def link_down(self) -> None:
        """Pull the cable: packets vanish, connections stay open."""
        ip(f"link set {self.interface} down")

    def link_up(self) -> None:
        ip(f"link set {self.interface} up")

    def stop_sshd(self) -> None:
        """End sshd's listener and its sessions; what they started detached stays."""
        for pid in self._sshd():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def start_sshd(self) -> None:
        """Start sshd again after ``stop_sshd``."""
        config = json.loads((self.folder / "node.json").read_text())
        # It puts itself in the background: the listener must not hold our pipes.
        argv = [word for word in config["sshd"] if word not in ("-D", "-e")]
        subprocess.run([*self.enter(as_root=True), *argv], check=True, timeout=10)
        self.wait_up()

    def _sshd(self) -> list[int]:
        namespace = os.stat(f"/proc/{self.pid}/ns/pid").st_ino
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    if os.stat(f"/proc/{name}/ns/pid").st_ino == namespace:
                        comm = Path(f"/proc/{name}/comm").read_text().strip()
                        if comm.startswith("sshd"):
                            found.append(int(name))
        return found

    def power_off(self) -> None:
        """Kill process 1, and with it every process of the node."""
        if self.holder is not None:
            for pid in (self.pid, self.holder.pid):
                end_process(pid, process_start(pid))
            self.holder.wait(5.0)
            self.holder = None

    def reboot(self) -> None:
        """Off and on again, with another boot id."""
        self.power_off()
        with open("/proc/sys/kernel/random/uuid") as file:
            (self.folder / "boot_id").write_text(file.read())
        self.start()
        self.wait_up()

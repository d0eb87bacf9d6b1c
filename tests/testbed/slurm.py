"""A real Slurm on this machine: munged, slurmctld and several slurmd, each a node of its own (``slurmd -N``).

    with SlurmBed(4) as bed:
        bed.run("sinfo")

Everything lies in one folder, with unprivileged ports; processes are ended by pid, and by the kernel if we are killed.
Every node has a generic resource ``npu`` made of plain files. Needs root, Debian's slurm-wlm and munge; a missing part
is a TestbedError, never a skip.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from tests.testbed.bed import Testbed
from tests.testbed.network import TestbedError, find_program

NEEDED = {"slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "sbatch": "slurm-wlm", "munged": "munge"}
UP = 30.0  # seconds everything may take to come up

_CONFIG = """ClusterName=bed
SlurmctldHost={host}({address})
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=npu
MpiDefault=none
SwitchType=switch/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,batch_sched_delay=0,sched_min_interval=0,requeue_delay=1
SlurmdParameters=config_overrides
JobRequeue=1
KillWait=3
MinJobAge=300
SlurmctldTimeout=30
SlurmdTimeout=60
ReturnToService=2
PropagateResourceLimits=NONE
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


class SlurmBed:
    """N nodes ``n1`` …, two CPUs and ``npus`` devices each; a context manager.

    under: a testbed whose nodes' network namespaces the slurmd run in, each with an address of its own: msrun takes
    every node that has the master's address for the master.
    """

    def __init__(self, count: int = 4, *, npus: int = 8, under: Testbed | None = None) -> None:
        missing = sorted({package for name, package in NEEDED.items() if find_program(name) is None})
        if os.geteuid() != 0 or missing:
            raise TestbedError(f"a Slurm for tests needs root and apt-get install -y {' '.join(missing) or '…'}")
        self.under = under
        self.names = [f"n{number + 1}" for number in range(count)]
        self.folder = Path(tempfile.mkdtemp(prefix="ostrain-slurm-"))
        self.config = self.folder / "slurm.conf"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        try:
            self._write(npus)
            self._start_all()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> SlurmBed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.config)}

    def run(self, *argv: str, timeout: float = 20.0) -> str:
        """Standard output of one of Slurm's commands, which has to succeed."""
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=timeout, env={**os.environ, **self.environment()}
        )
        if done.returncode != 0:
            raise TestbedError(f"{' '.join(argv)}: {done.stderr}")
        return done.stdout

    def _write(self, npus: int) -> None:
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        ports = free_ports(len(self.names) + 1)
        nodes, resources = [], []
        for number, (name, port) in enumerate(zip(self.names, ports[1:], strict=True)):
            address = self.under.nodes[number].address if self.under else "127.0.0.1"
            devices = self.folder / f"dev-{name}"
            devices.mkdir()
            for number in range(npus):
                (devices / f"davinci{number}").touch()
            nodes.append(f"NodeName={name} NodeHostname={name} NodeAddr={address} Port={port} CPUs=2 Gres=npu:{npus}")
            resources.append(f"NodeName={name} Name=npu File={devices}/davinci[0-{npus - 1}]")
        own = f"{self.under.subnet}.1" if self.under else "127.0.0.1"
        host = socket.gethostname()
        text = _CONFIG.format(folder=self.folder, host=host, address=own, ports=ports, nodes="\n".join(nodes))
        self.config.write_text(text)
        (self.folder / "gres.conf").write_text("AutoDetect=off\n" + "\n".join(resources) + "\n")
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")

    def _start_all(self) -> None:
        munge = [f"--{name}={self.folder}/munge.{name}" for name in ("socket",)]
        munge += [f"--key-file={self.folder}/munge.key", f"--pid-file={self.folder}/munge.pid"]
        munge += [f"--log-file={self.folder}/munge.log", f"--seed-file={self.folder}/munge.seed", "--num-threads=2"]
        self._spawn("munged", "munged", "--foreground", "--force", *munge)
        self._until(lambda: (self.folder / "munge.socket").exists(), "munged is up")
        self._spawn("slurmctld", "slurmctld", "-D", "-f", str(self.config))
        for name in self.names:
            self.start_node(name)
        self._until(self._all_idle, "every node is idle")

    def start_node(self, name: str) -> None:
        """Start a node's slurmd."""
        inside: list[str] = []
        if self.under:
            inside = ["nsenter", f"--net=/run/netns/{self.under.nodes[self.names.index(name)].namespace}"]
        self._spawn(name, "slurmd", "-D", "-N", name, "-f", str(self.config), inside=inside)

    def freeze_node(self, name: str) -> None:
        """Stop a node's slurmd and everything below it: as of a machine that is gone, no connection of it is closed."""
        for pid in self._all_of(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def revive_node(self, name: str) -> None:
        """The machine has booted: nothing of before is left, a new slurmd runs."""
        for pid in self._all_of(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._processes[name].wait(10)
        self.start_node(name)

    def _all_of(self, name: str) -> list[int]:
        top = self._processes[name].pid
        return list(dict.fromkeys([top, *self._below(top), *self._steps(name)]))

    def _steps(self, name: str) -> list[int]:
        """slurmstepd of a node (they leave their slurmd) and all below them."""
        found = []
        for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
                entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                ours = f"SLURM_CONF={self.config}".encode() in entries
                if ours and words.startswith(b"slurmstepd") and f"SLURMD_NODENAME={name}".encode() in entries:
                    found += [pid, *self._below(pid)]
                elif ours and f"SLURMD_NODENAME={name}".encode() in entries:
                    found.append(pid)
        return found

    def _below(self, pid: int) -> list[int]:
        found = []
        for child in children(pid):
            found += [*self._below(child), child]
        return found

    def _spawn(self, label: str, program: str, *arguments: str, inside: Sequence[str] = ()) -> None:
        path = find_program(program)
        assert path is not None
        argv = ["setpriv", "--pdeathsig=TERM", *inside, path, *arguments]
        with open(self.folder / f"{label}.out", "ab") as out:
            self._processes[label] = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
                env={**os.environ, **self.environment()},
            )  # fmt: skip

    def _all_idle(self) -> bool:
        with contextlib.suppress(TestbedError, subprocess.TimeoutExpired):
            states = self.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%T").split()
            return states == ["idle"] * len(self.names)
        return False

    def idle(self) -> bool:
        """Whether no job is left and every node is free."""
        return not self.run("squeue", "--noheader").strip() and self._all_idle()

    def _until(self, check: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + UP
        while not check():
            ended = [label for label, process in self._processes.items() if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise TestbedError(f"not {what} within {UP:g} s; ended: {ended or 'none'}\n{self._last_lines()}")
            time.sleep(0.1)

    def _last_lines(self) -> str:
        texts = []
        for path in sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")]):
            texts.append(f"{path.name}: " + " | ".join(path.read_text(errors="replace").splitlines()[-3:]))
        return "\n".join(texts)

    def close(self) -> None:
        """End jobs, then every process by its pid, and remove the folder."""
        if "slurmctld" in self._processes:
            with contextlib.suppress(TestbedError, subprocess.TimeoutExpired):
                self.run("scancel", "--quiet", "--user=root", "--full", timeout=5)
                deadline = time.monotonic() + 8
                while self.run("squeue", "--noheader").strip() and time.monotonic() < deadline:
                    time.sleep(0.2)
        for name in self.names:
            for pid in self._steps(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for process in reversed(self._processes.values()):
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def children(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            yield from map(int, (task / "children").read_text().split())


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, below those of outgoing connections."""
    found: list[int] = []
    for port in range(21000 + os.getpid() % 5000, 32000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise TestbedError("no free ports for Slurm")

#!/usr/bin/env python3
"""The node agent: starts, watches and ends the processes of one run on one node. docs/run-directory.md is its contract.

One file, standard library only, Python 3.8 or newer: it is copied to a node and run there as it is.

    python agent.py VERB …      one JSON object on standard output, messages on standard error
"""

from __future__ import annotations

import base64
import codecs
import contextlib
import ctypes
import errno
import fcntl
import glob
import hashlib
import importlib.util
import io
import json
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # only annotations use these, and Python 3.8 could not evaluate them
    import tarfile
    from collections.abc import Callable, Iterator, Mapping
    from typing import IO

    Json = dict[str, Any]

POLL = 0.2  # seconds between two looks at the workers
STRAY_POLL = 2.0  # seconds between two looks for descendants that dropped the tag
RECORD_TIME = 0.3  # seconds wrappers and launcher have to themselves after the workers' end
WRITE_TIME = 2.0  # seconds that who writes the masked logs has beyond everybody else
KILL_BOUND = 5.0  # seconds SIGKILL may take before a process counts as a survivor
SERVE_IDLE = 60.0  # seconds a session waits for its next verb
TICK = 2.0  # seconds between two ticks of a follow stream
CHUNK = 64 << 10
TAIL_LINES = 20
LEAST_SECRET = 4  # letters; masking anything shorter would only garble the logs
STUCK_LOG = 5.0  # seconds a masked log may fail to be written before its writers are told by a broken pipe
WORKER_EXITS = {64: "bad_config", 65: "bad_data", 66: "bad_checkpoint", 67: "disk_full", 68: "not_finite"}
FINAL = ("SUCCEEDED", "FAILED", "CANCELLED")
PULSE = 5.0  # seconds between two signs of life of an agent that a scheduler holds
SILENT = 60.0  # seconds without one after which it counts as not alive
HELD_EXITS = {"SUCCEEDED": 0, "CANCELLED": 5}  # exit codes of `hold`; any other state 1
CONNECTION_FAILURES = (BrokenPipeError, ConnectionResetError)
EVIDENCE_LIMIT = 256 << 10  # bytes of the end of each of the driver's logs that are sent
EVIDENCE_FILES = 64
KERNEL_LINES = re.compile(
    r"oom|out of memory|killed process|segfault|i/o error|\becc\b|uncorrect|link is (?:down|up)|davinci|hns3|devdrv"
    r"|no space|remounting|hung_task|blocked for more than",
    re.IGNORECASE,
)
STACK_WAIT = 3.0  # seconds all workers together have to write their stacks
STACK_QUIET = 0.15  # seconds without a new byte after which a dump is taken for whole
STACK_LIMIT = 64 << 10  # bytes of one rank's dump that are sent
STACKS_KEPT = 4 << 20  # bytes of a rank's dumps beyond which its file starts anew


class AgentError(Exception):
    """Ends a verb with ``{"error": {...}}`` on standard output and exit code 1. ``kind`` as in cluster.backend."""

    def __init__(self, kind: str, what: str, why: str = "", next_step: str = "") -> None:
        super().__init__(what)
        self.info: Json = {"kind": kind, "what": what, "why": why, "next": next_step}


def os_problem(what: str, error: OSError) -> AgentError:
    """The right kind for an error of the operating system."""
    path = error.filename if isinstance(error.filename, str) else ""
    why = "{}{}".format(error.strerror or error, ": " + path if path else "")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return AgentError("disk_full", what, why, "free space on the node")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return AgentError("permission", what, why, "give the user that folder, or name another `root` in the inventory")
    return AgentError("protocol", what, why)


# ---------------------------------------------------------------------------------------------------------------------
# Files: whole or not at all
# ---------------------------------------------------------------------------------------------------------------------


def write_file(path: str, data: bytes, mode: int = 0o644) -> None:
    """Replace ``path`` as a whole: temporary name, fsync, rename, fsync of the folder."""
    folder = os.path.dirname(path)
    handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, mode)
            file.write(data)
            file.flush()
            os.fsync(handle)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(folder)


def sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: str, value: Json) -> None:
    write_file(path, (json.dumps(value) + "\n").encode())


def read_json(path: str) -> Json | None:
    """The JSON object in a file; None where there is none, or no whole one."""
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read().decode("utf-8", "replace"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def read_tail(path: str, limit: int = 16 << 10) -> bytes:
    """The last ``limit`` bytes of a file; nothing where it cannot be read."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            return file.read(limit)
    except OSError:
        return b""


def inside(path: str) -> bool:
    """Whether a relative path stays in its folder, lexically."""
    return bool(path) and not os.path.isabs(path) and ".." not in path.split("/") and "\0" not in path


# ---------------------------------------------------------------------------------------------------------------------
# Processes: /proc is the only source
# ---------------------------------------------------------------------------------------------------------------------


class Process(NamedTuple):
    pid: int
    ppid: int
    state: str
    start: int  # clock ticks since boot: with the pid, the process's identity


def prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def die_with_parent(parent: int) -> None:
    """The kernel sends SIGKILL to this process when its parent ends (PR_SET_PDEATHSIG)."""
    prctl(1, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call
        os.kill(os.getpid(), signal.SIGKILL)


def read_process(pid: int) -> Process | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    fields = text[text.rfind(b")") + 2 :].split()  # the name before it may hold anything
    if len(fields) < 20:
        return None
    return Process(pid, int(fields[1]), fields[0].decode(), int(fields[19]))


def all_processes() -> dict[int, Process]:
    found = (read_process(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {process.pid: process for process in found if process is not None and process.state not in "ZX"}


def is_alive(pid: Any, start: Any) -> bool:
    process = read_process(pid) if isinstance(pid, int) and pid > 0 else None
    return process is not None and process.state not in "ZX" and process.start == start


def environment_of(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:  # another user's, or gone
        return []


def command_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().rstrip(b"\0").split(b"\0")
    except OSError:
        return ""
    return b" ".join(words).decode("utf-8", "replace")[:300]


def is_tagged(pid: int, run_id: str, node: str) -> bool:
    """Whether a process carries the run's tag. Two nodes of a run may share a machine: the node's name counts, too."""
    entries = environment_of(pid)
    if b"OSTRAIN_RUN=" + os.fsencode(run_id) not in entries:
        return False
    names = [entry for entry in entries if entry.startswith(b"OSTRAIN_NODE=")]
    return not names or b"OSTRAIN_NODE=" + os.fsencode(node) in names


def boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def own_identity() -> Json:
    me = read_process(os.getpid())
    return {"pid": os.getpid(), "start": me.start if me else 0, "boot_id": boot_id()}


def same_boot_alive(identity: Json | None) -> bool:
    if not identity or identity.get("boot_id") != boot_id():
        return False
    return is_alive(identity.get("pid"), identity.get("start"))


# ---------------------------------------------------------------------------------------------------------------------
# The run directory
# ---------------------------------------------------------------------------------------------------------------------


class RunDir:
    """Names in a run directory, and whose it is."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        staged = read_json(self.at("agent/staged.json")) or {}
        self.run_id: str = staged.get("run_id") or os.path.basename(os.path.dirname(self.path))
        self.node: str = staged.get("node") or os.path.basename(self.path)
        self.bundle: str = staged.get("bundle") or ""

    def at(self, name: str) -> str:
        return os.path.join(self.path, name)

    def must_exist(self) -> None:
        if not os.path.isdir(self.path):
            raise AgentError("no_run", f"no run {self.run_id} here", f"{self.path} does not exist")

    def state(self) -> Json:
        return read_json(self.at("agent/state.json")) or {}

    def silence(self) -> int:
        """Seconds since a held agent's last sign of life; 0 while that is recent. It may be on another machine, whose
        clock may differ: what looks old is measured again by the clock of the file system."""
        try:
            path = self.at("agent/pulse" if os.path.exists(self.at("agent/pulse")) else "agent/state.json")
            with open(path, "rb") as pulse:
                beaten = os.fstat(pulse.fileno()).st_mtime
            if abs(time.time() - beaten) < SILENT / 2:
                return 0
            with tempfile.TemporaryFile(dir=self.at("agent")) as now:
                now.write(b".")
                now.flush()
                silence = int(os.fstat(now.fileno()).st_mtime - beaten)
        except OSError:
            return 0
        return silence if silence >= SILENT / 2 else 0

    def agent(self) -> Json | None:
        """Identity of the agent that holds, or last held, the lock."""
        return read_json(self.at("agent/lock"))

    def cancel(self) -> Json | None:
        if not os.path.exists(self.at("agent/cancel")):
            return None
        return read_json(self.at("agent/cancel")) or {"reason": "cancelled"}

    def attempt(self) -> int:
        number = self.state().get("attempt")
        if isinstance(number, int):
            return number
        names = glob.glob(os.path.join(glob.escape(self.path), "logs", "attempt-*"))
        numbers = [name.rpartition("-")[2] for name in names]
        return max([int(number) for number in numbers if number.isdigit()], default=0)

    def insist(self, name: str, value: Json) -> None:
        """Write a file even when the disk is full, by giving up the ballast for it. A run must end all the same."""
        for _ in range(2):
            try:
                write_json(self.at(name), value)
                return
            except OSError as error:
                talk(f"{name} not written: {error}")
                with contextlib.suppress(OSError):
                    os.unlink(self.at("agent/ballast"))

    def event(self, attempt: int, event: str, **more: Any) -> None:
        line = json.dumps({"time": time.time(), "node": self.node, "attempt": attempt, "event": event, **more})
        try:
            handle = os.open(self.at("events.jsonl"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, line.encode() + b"\n")
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:  # a full disk must not keep the agent from ending the run
            talk(f"event not written: {error}: {line}")


def talk(text: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{time.time():.3f} {text}\n")
        sys.stderr.flush()


# ---------------------------------------------------------------------------------------------------------------------
# Workers: what their wrappers recorded
# ---------------------------------------------------------------------------------------------------------------------


def read_workers(run: RunDir, attempt: int) -> list[Json]:
    """Records of the attempt with ``state``: running, ended, or vanished (its wrapper is gone and recorded no end)."""
    workers = []
    for path in sorted(glob.glob(os.path.join(glob.escape(run.path), f"workers/attempt-{attempt}/*.json"))):
        record = read_json(path)
        if record is None or "wrapper_pid" not in record:
            continue
        if record.get("ended") is None and not is_alive(record["wrapper_pid"], record.get("wrapper_start")):
            record = read_json(path) or record  # it may have ended between the two looks
            record["state"] = "vanished" if record.get("ended") is None else "ended"
        else:
            record["state"] = "running" if record.get("ended") is None else "ended"
        workers.append(record)
    return workers


def worker_log(record: Json) -> str:
    return "scheduler.log" if record.get("role") == "scheduler" else "worker_{}.log".format(record.get("rank"))


def describe_fault(run: RunDir, attempt: int, reason: str, log: str, **facts: Any) -> Json:
    """A fault object of docs/run-directory.md."""
    path = f"logs/attempt-{attempt}/{log}"
    if not os.path.exists(run.at(path)):
        path = f"logs/attempt-{attempt}/launcher.log"
    lines = read_tail(run.at(path)).decode("utf-8", "replace").splitlines()[-TAIL_LINES:]
    fault: Json = {"rank": None, "pid": None, "exit_code": None, "signal": None, "time": time.time()}
    fault.update({"reason": reason, "log": path, "tail": lines, "message": None})
    fault.update(facts)
    return fault


def worker_fault(run: RunDir, attempt: int, record: Json) -> Json:
    vanished = record["state"] == "vanished"
    code, name = record.get("exit_code"), record.get("signal")
    if vanished:  # a wrapper records every end but its own by SIGKILL
        code, name = None, "SIGKILL"
    reason = "worker_killed" if name else WORKER_EXITS.get(code or 0, "worker_failed")
    rank, text = record.get("rank"), None
    told = read_json(run.at(f"faults/attempt-{attempt}/rank-{rank}.json"))
    if told and not name:
        text = {key: told.get(key, "") for key in ("what", "where", "why", "next")}
        if reason == "worker_failed" and told.get("kind") in WORKER_EXITS.values():
            reason = told["kind"]
    when = time.time() if vanished else record["ended"]
    facts = {"rank": rank, "pid": record.get("pid"), "exit_code": code, "signal": name, "message": text}
    return describe_fault(run, attempt, reason, worker_log(record), time=when, **facts)


def message(what: str) -> Json:
    return {"what": what, "where": "", "why": "", "next": ""}


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


# ---------------------------------------------------------------------------------------------------------------------
# Masking: no secret's value reaches a log
# ---------------------------------------------------------------------------------------------------------------------


def spellings(value: str) -> set[bytes]:
    """How a value may stand in a log: as it is, its lines, escaped as JSON and Python do, in a URL, in base64."""
    from urllib.parse import quote  # here and below: what few verbs need is not worth its time at every start

    raw = value.encode("utf-8", "surrogateescape")
    found = {raw, repr(value)[1:-1].encode("utf-8", "surrogateescape"), quote(raw, safe="").encode()}
    found |= {line for line in raw.splitlines() if len(line) >= 8}
    found |= {json.dumps(value)[1:-1].encode(), json.dumps(value, ensure_ascii=False)[1:-1].encode("utf-8", "replace")}
    if len(raw) >= 8:
        for before in range(3):  # base64 of a longer text that holds it: the letters that depend on it alone
            text = base64.b64encode(b"\0" * before + raw).rstrip(b"=")
            found.add(text[(0, 2, 3)[before] : (before + len(raw)) * 8 // 6])
    return {one for one in found if len(one) >= LEAST_SECRET}


class Masker:
    """Replaces secrets in a stream of bytes, wherever the stream is cut into blocks."""

    def __init__(self, secrets: dict[str, str]) -> None:
        self.names = {one: name for name, value in sorted(secrets.items()) for one in spellings(value)}
        parts = sorted(self.names, key=len, reverse=True)
        self.pattern = re.compile(b"|".join(map(re.escape, parts)))
        self.longest = max(map(len, parts), default=0)
        self.rest = b""

    def mask(self, data: bytes) -> bytes:
        if not any(one in data for one in self.names):  # much quicker than the pattern
            return data
        return self.pattern.sub(lambda match: b"[secret %s]" % self.names[match[0]].encode(), data)

    def kept(self, data: bytes) -> int:
        """Bytes at the end that may be the beginning of a secret."""
        tail = data[max(0, len(data) - self.longest + 1) :]
        most = 0
        for one in self.names:
            at = tail.find(one[:1], max(0, len(tail) - len(one) + 1))
            while at >= 0 and not one.startswith(tail[at:]):
                at = tail.find(one[:1], at + 1)
            most = max(most, len(tail) - at if at >= 0 else 0)
        return most

    def feed(self, data: bytes) -> bytes:
        """What may be written after this block."""
        data = self.rest + data
        end = len(data) - self.kept(data)
        for match in self.pattern.finditer(data, max(0, end - self.longest)):
            if match.start() < end < match.end():
                end = match.start()
        self.rest = data[end:]
        return self.mask(data[:end])

    def end(self) -> bytes:
        """What is left at the end. The greater part of a secret is none that may be shown."""
        cut = next((one for one in self.names if len(self.rest) >= 8 and one.startswith(self.rest)), None)
        return self.mask(self.rest) if cut is None else b"[secret %s]" % self.names[cut].encode()


def write_patiently(handle: int, data: bytes) -> bool:
    """Write everything; False when the disk takes nothing for too long."""
    deadline = time.monotonic() + STUCK_LOG
    while data:
        try:
            data = data[os.write(handle, data) :]
            deadline = time.monotonic() + STUCK_LOG
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EAGAIN) or time.monotonic() > deadline:
                return False
            time.sleep(0.1)
    return True


def pump(pipes: list[tuple[int, int]], secrets: dict[str, str]) -> None:
    """From every pipe to its log until the last writer has ended."""
    maskers = {source: Masker(secrets) for source, _ in pipes}
    targets = dict(pipes)
    while targets:
        for source in select.select(list(targets), [], [])[0]:
            data = os.read(source, CHUNK)
            masker = maskers[source]
            if not write_patiently(targets[source], masker.feed(data) if data else masker.end()) or not data:
                os.close(source)
                del targets[source]


def masked_outputs(outputs: tuple[int, int], secrets: dict[str, str]) -> tuple[int, int, int]:
    """Pipes in place of two outputs, and the process behind them that writes what comes out of them, masked.

    A process of its own: it must outlive whoever is killed until the last byte is written. It ends with its writers.
    """
    same = os.path.sameopenfile(*outputs)
    pairs = [(*os.pipe(), target) for target in (outputs[:1] if same else outputs)]
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            keep = {handle for source, _, target in pairs for handle in (source, target)}
            for handle in map(int, os.listdir("/proc/self/fd")):
                if handle not in keep:  # locks and pipes of others
                    with contextlib.suppress(OSError):
                        os.close(handle)
            pump([(source, target) for source, _, target in pairs], secrets)
            code = 0
        finally:
            os._exit(code)
    for source, _, _ in pairs:
        os.close(source)
    return pairs[0][1], pairs[-1][1], pid


# ---------------------------------------------------------------------------------------------------------------------
# Ending processes: exactly the run's own
# ---------------------------------------------------------------------------------------------------------------------


def family(run: RunDir, agent: Json | None, processes: dict[int, Process]) -> tuple[list[Process], list[Process]]:
    """Processes of the run without the agent: those with the tag, and those only descended from it or known strays."""
    roots = {agent["pid"]} if agent and same_boot_alive(agent) else set()
    tagged = {pid for pid in processes if pid != os.getpid() and is_tagged(pid, run.run_id, run.node)}
    known = (read_json(run.at("agent/strays.json")) or {}).get("strays", [])
    found = tagged | {pid for pid, start in known if pid in processes and processes[pid].start == start}
    children: dict[int, list[int]] = {}
    for process in processes.values():
        children.setdefault(process.ppid, []).append(process.pid)
    stack = list(found | roots)
    while stack:
        for child in children.get(stack.pop(), []):
            if child not in found:
                found.add(child)
                stack.append(child)
    found -= roots | {os.getpid()}
    return [processes[pid] for pid in sorted(found & tagged)], [processes[pid] for pid in sorted(found - tagged)]


class Ending:
    """Ends processes: SIGTERM (and SIGCONT), grace, SIGKILL, a bound. Launcher and wrappers come after the workers,
    because a launcher's death kills its wrappers, and a wrapper's its worker, before they could use their grace."""

    def __init__(self, run: RunDir, attempt: int, agent: Json | None) -> None:
        self.run, self.agent = run, agent
        self.workers = read_workers(run, attempt)
        self.ranks = {record.get("pid"): record.get("rank") for record in self.workers}
        self.writers = {int(one.get("writer_pid") or 0) for one in [*self.workers, run.state()]}
        self.sent: dict[tuple[int, int], Json] = {}

    def alive(self) -> dict[int, Process]:
        tagged, untagged = family(self.run, self.agent, all_processes())
        return {process.pid: process for process in tagged + untagged}

    def held_back(self, alive: dict[int, Process]) -> set[int]:
        """Wrappers and everything above them, and who writes the masked logs."""
        held = {pid for pid in self.writers if pid in alive}
        for record in self.workers:
            pid = record["wrapper_pid"]
            while pid in alive and pid not in held:
                held.add(pid)
                pid = alive[pid].ppid
        return held

    def send(self, process: Process, number: int) -> None:
        key, name = (process.pid, process.start), signal_name(number)
        report = {"pid": process.pid, "rank": self.ranks.get(process.pid), "command": command_of(process.pid)}
        if self.sent.get(key, {}).get("signal") == name or not is_alive(process.pid, process.start):
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, number)
            self.sent.setdefault(key, report)["signal"] = name
            os.kill(process.pid, signal.SIGCONT)

    def signal_all(self, alive: dict[int, Process], held: set[int], number: int) -> None:
        for process in alive.values():
            if process.pid not in held:
                self.send(process, number)
            elif process.pid in self.writers:
                continue
            elif process.state in "Tt":
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(process.pid, signal.SIGCONT)

    def run_to_end(self, grace: float, between: Callable[[], None] = lambda: None) -> Json:
        """``killed`` and ``survivors``. ``between`` is called often (an agent reaps there)."""
        end = time.monotonic() + grace
        alone: float | None = None
        while True:
            between()
            alive, now = self.alive(), time.monotonic()
            if not alive or now > end + KILL_BOUND:
                break
            held = self.held_back(alive)
            if alone is None and held == set(alive):
                alone = now
            # Left alone, a wrapper still has an end to record; a launcher that dies first takes it along.
            if now > min(end, alone or end) + RECORD_TIME:
                # Who writes masked logs ends with the last of its writers, unless the disk takes nothing.
                held = self.writers & set(alive) if now < max(end, alone or end) + WRITE_TIME else set()
            self.signal_all(alive, held, signal.SIGKILL if now >= end else signal.SIGTERM)
            time.sleep(0.05)
        survivors = [{"pid": p.pid, "state": p.state, "command": command_of(p.pid)} for p in alive.values()]
        left = {process.pid for process in alive.values()}
        killed = [report for report in self.sent.values() if report["pid"] not in left]
        return {"killed": killed, "survivors": survivors}


# ---------------------------------------------------------------------------------------------------------------------
# The agent itself: start and supervision
# ---------------------------------------------------------------------------------------------------------------------


class Agent:
    """Lives as long as the attempt: one launcher, its workers, their end."""

    def __init__(self, run: RunDir, request: Json) -> None:
        self.run, self.request = run, request
        self.attempt = int(request["attempt"])
        self.grace = float(request.get("grace", 5.0))
        self.ranks = [int(rank) for rank in request.get("ranks", [])]
        self.identity = own_identity()
        self.launcher = 0
        self.launcher_status: int | None = None
        self.seen: dict[str, str] = {}
        self.strays: list[list[int]] = []
        self.next_stray_look = 0.0
        self.terminated = False
        self.next_pulse = 0.0
        self.record: Json = {"run_id": run.run_id, "node": run.node, "attempt": self.attempt, "state": "RUNNING"}
        self.record.update(reason="running", started=time.time(), steps=request.get("steps"), fault=None)
        self.record.update(held=bool(request.get("held")), where=request.get("where"))
        self.record.update(self.identity)

    def save(self, **changes: Any) -> None:
        """Write state.json."""
        self.record.update(changes)
        self.run.insist("agent/state.json", self.record)

    def launch(self) -> None:
        """Start the launcher. Raises AgentError when it cannot be executed."""
        logs = self.run.at(f"logs/attempt-{self.attempt}")
        agent, secrets = os.getpid(), secrets_of(self.request.get("secrets") or {})
        with open(os.path.join(logs, "launcher.log"), "ab", buffering=0) as log:
            out = log.fileno()
            if secrets:
                out, _, writer = masked_outputs((out, out), secrets)
                self.record["writer_pid"] = writer
            try:
                child = subprocess.Popen(
                    list(self.request["command"]),
                    cwd=self.run.path,
                    env=launcher_environment(self.run, self.request, self.identity),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                    preexec_fn=lambda: die_with_parent(agent),
                )
            except (OSError, subprocess.SubprocessError) as error:
                what = "the launcher {!r} could not be started".format(self.request["command"][0])
                raise AgentError("protocol", what, str(error)) from error
            finally:
                if secrets:
                    os.close(out)
        self.launcher = child.pid
        child.returncode = 0  # reap() waits for it, not subprocess
        self.save(launcher={"pid": child.pid})
        self.run.event(self.attempt, "started", agent=agent, launcher=child.pid)

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.launcher:
                self.launcher_status = status

    def note_strays(self) -> None:
        """Remember descendants without the tag: should the agent be killed, ``stop`` still finds them."""
        if time.monotonic() < self.next_stray_look:
            return
        self.next_stray_look = time.monotonic() + STRAY_POLL
        strays = [[p.pid, p.start] for p in family(self.run, self.identity, all_processes())[1]]
        if strays != self.strays:
            self.strays = strays
            with contextlib.suppress(OSError):  # only a second net
                write_json(self.run.at("agent/strays.json"), {"strays": strays})

    def note_workers(self, workers: list[Json]) -> None:
        for record in workers:
            name = "{}".format("scheduler" if record.get("role") == "scheduler" else record.get("rank"))
            if self.seen.get(name) == record["state"]:
                continue
            if name not in self.seen:
                self.run.event(self.attempt, "worker_started", rank=record.get("rank"), pid=record.get("pid"))
            if record["state"] != "running":
                facts = {key: record.get(key) for key in ("rank", "pid", "exit_code", "signal")}
                self.run.event(self.attempt, "worker_" + record["state"], **facts)
            self.seen[name] = record["state"]

    def launcher_fault(self, what: str = "") -> Json | None:
        if self.launcher_status is None:
            return None
        status = self.launcher_status
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        code = None if number else os.WEXITSTATUS(status)
        if code is not None and code > 128:  # a shell tells so that its child was killed
            number = code - 128
        if not number and not code and not what:
            return None
        facts = {"pid": self.launcher, "exit_code": code, "signal": signal_name(number) if number else None}
        reason, told = "launcher_killed" if number else "launcher_failed", message(what) if what else None
        return describe_fault(self.run, self.attempt, reason, "launcher.log", message=told, **facts)

    def first_fault(self, workers: list[Json]) -> Json | None:
        """The earliest end that is no success, before its consequences."""
        ranked = [record for record in workers if record.get("role") != "scheduler"]
        bad = [record for record in ranked if record["state"] == "ended" and record.get("exit_code") != 0]
        vanished = [record for record in ranked if record["state"] == "vanished"]
        # mpirun sends SIGTERM to the others of one that vanished: theirs is a consequence.
        if bad and not (vanished and all(record.get("signal") == "SIGTERM" for record in bad)):
            return worker_fault(self.run, self.attempt, min(bad, key=lambda record: float(record["ended"])))
        # A launcher that was killed took its wrappers along. One that exits with more than 128 speaks of a worker.
        if vanished and not (self.launcher_status is not None and os.WIFSIGNALED(self.launcher_status)):
            return worker_fault(self.run, self.attempt, vanished[0])
        killed = self.launcher_fault()
        if killed:
            return killed
        scheduler = [record for record in workers if record.get("role") == "scheduler" and record["state"] != "running"]
        if scheduler and scheduler[0].get("exit_code") != 0 and any(record["state"] == "running" for record in ranked):
            fault = worker_fault(self.run, self.attempt, scheduler[0])
            fault["rank"], fault["message"] = None, message("the scheduler ended")
            fault["reason"] = "launcher_killed" if fault["signal"] else "launcher_failed"
            return fault
        return None

    def missing(self, workers: list[Json]) -> list[int]:
        done = {record.get("rank") for record in workers if record.get("exit_code") == 0}
        running = [
            record["rank"] for record in workers if record["state"] == "running" and record.get("rank") is not None
        ]
        return sorted((set(self.ranks) - done) | set(running))

    def look(self) -> tuple[list[Json], Json | None]:
        self.reap()
        workers = read_workers(self.run, self.attempt)
        fault = self.first_fault(workers)
        if fault is not None:  # whoever ended because of it, or caused it, is recorded a moment later
            time.sleep(0.05)
            self.reap()
            workers = read_workers(self.run, self.attempt)
            fault = self.first_fault(workers)
        self.note_workers(workers)
        return workers, fault

    def pulse(self) -> None:
        """Say that we live, and remember how to end when another node of the run has failed. Held agents only."""
        if self.request.get("held") and time.monotonic() >= self.next_pulse:
            self.next_pulse = time.monotonic() + PULSE
            with contextlib.suppress(OSError):
                write_file(self.run.at("agent/pulse"), b"")

    def failed_marker(self) -> str:
        """Where the first node of the attempt that fails says so to the others, on a file system they share."""
        return os.path.join(self.request["shared"], f"failed-{self.attempt}") if self.request.get("shared") else ""

    def asked_to_end(self) -> tuple[str, str, Json | None]:
        """What SIGTERM means. A scheduler's reason is told by a Python program of the request: a word and a text."""
        reason, what = "agent_lost", "the agent was asked to end (SIGTERM)"
        why = self.request.get("why")
        if why:
            try:
                argv = [sys.executable, *why]
                answer = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=10)
                word, _, text = answer.stdout.decode("utf-8", "replace").strip().partition(" ")
                if re.match(r"[a-z_]+\Z", word):
                    reason, what = word, text
            except (OSError, subprocess.SubprocessError) as error:
                talk(f"nobody says why: {error}")
        told = describe_fault(self.run, self.attempt, reason, "agent.log", message=message(what))
        state = cancelled_state(reason)["state"]
        return state, reason, told if state == "FAILED" else None

    def supervise(self) -> tuple[str, str, Json | None]:
        """Watch until the attempt's outcome is known: state, reason, fault."""
        patience: float | None = None
        while True:
            self.pulse()
            workers, fault = self.look()
            cancel = self.run.cancel()
            if cancel is not None:
                verdict = cancelled_state(str(cancel.get("reason") or "cancelled"))
                return verdict["state"], verdict["reason"], None
            if self.terminated:
                return self.asked_to_end()
            if fault is None and self.failed_marker() and os.path.exists(self.failed_marker()):
                return "FAILED", "peer_failed", None
            if fault is not None:
                return "FAILED", fault["reason"], fault
            if self.launcher_status is not None:  # with 0: a failure would be a fault
                missing = self.missing(workers)
                if not missing:
                    return "SUCCEEDED", "done", None
                patience = patience or time.monotonic() + 2.0
                if time.monotonic() > patience:
                    what = "the launcher ended with 0, but rank {} did not".format(", ".join(map(str, missing)))
                    return "FAILED", "launcher_failed", self.launcher_fault(what)
            self.note_strays()
            time.sleep(POLL)

    def finish(self, state: str, reason: str, fault: Json | None) -> None:
        """End what is left, then write the final state: readers may rely on every byte being there by then."""
        if fault is not None:
            self.save(fault=fault)
            self.run.event(self.attempt, "fault", fault=fault)
            if self.failed_marker():
                with contextlib.suppress(OSError):
                    write_file(self.failed_marker(), self.run.node.encode())
        cancel = self.run.cancel() or {}
        grace = float(cancel.get("grace", self.grace))
        report = Ending(self.run, self.attempt, self.identity).run_to_end(grace, self.reap)
        if report["killed"] or report["survivors"]:
            self.run.event(self.attempt, "killed", **report)
        self.note_workers(read_workers(self.run, self.attempt))
        if report["survivors"] and state == "CANCELLED":
            reason = "survivors"
        self.run.event(self.attempt, "ended", state=state, reason=reason)
        talk(f"{state} ({reason})")
        self.save(state=state, reason=reason, ended=time.time(), report=report)


def launcher_environment(run: RunDir, request: Json, identity: Json) -> dict[str, str]:
    """The environment of docs/run-directory.md on top of the node's own."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("OSTRAIN_")}
    bundle = request.get("bundle") or run.bundle
    attempt = str(request["attempt"])
    env["PATH"] = os.path.dirname(sys.executable) + ":" + env.get("PATH", "/usr/local/bin:/usr/bin:/bin")
    env["PYTHONPATH"] = bundle + (":" + env["PYTHONPATH"] if env.get("PYTHONPATH") else "")
    env.setdefault("PYTHONUNBUFFERED", "1")  # else a log line waits for its block to fill
    env.update(
        OSTRAIN_BUNDLE=bundle,
        OSTRAIN_AGENT=os.path.abspath(__file__),
        OSTRAIN_AGENT_ID="{}:{}".format(identity["pid"], identity["start"]),
        OSTRAIN_RUN=run.run_id,
        OSTRAIN_NODE=run.node,
        OSTRAIN_ATTEMPT=attempt,
        OSTRAIN_RUN_DIR=run.path,
        OSTRAIN_LOG_DIR=run.at("logs/attempt-" + attempt),
        OSTRAIN_MASTER_PORT=str(request.get("master_port") or 0),
    )
    for name in ("node_rank", "master_address", "devices"):  # of nodes that nobody knew when the job was compiled
        value = request.get(name, os.environ.get("OSTRAIN_" + name.upper()))
        if value not in (None, ""):
            env["OSTRAIN_" + name.upper()] = str(value)
    secrets = request.get("secrets") or {}
    env.update(secrets)
    if secrets:
        env["OSTRAIN_SECRETS"] = " ".join(sorted(secrets))
    return env


def secrets_of(values: Mapping[str, str]) -> dict[str, str]:
    """Those that can be masked."""
    return {name: value for name, value in values.items() if len(value) >= LEAST_SECRET}


def own_secrets() -> dict[str, str]:
    """Of a worker's environment: OSTRAIN_SECRETS has their names."""
    names = os.environ.get("OSTRAIN_SECRETS", "").split()
    return secrets_of({name: os.environ[name] for name in names if name in os.environ})


def take_lock(run: RunDir, held: bool = False) -> int | None:
    """A descriptor that holds the lock as long as it is open; None when a live agent holds it. Not every shared file
    system knows locks: the scheduler that holds an agent sees to it that there is one.
    """
    handle = os.open(run.at("agent/lock"), os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + 3.0
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if run.state().get("state") not in FINAL or time.monotonic() > deadline:
                os.close(handle)
                return None
            time.sleep(0.02)  # the last agent has written its last word and is about to end
        except OSError as error:
            if not held or error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            break
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(own_identity()).encode(), 0)
    return handle


def prepare_attempt(run: RunDir, request: Json) -> None:
    """Clear the way: no process, no cancel and no log of the same attempt from before."""
    attempt = int(request["attempt"])
    left = Ending(run, run.attempt(), None).run_to_end(0.5)
    if left["survivors"]:
        pids = ", ".join(str(process["pid"]) for process in left["survivors"])
        raise AgentError(
            "protocol", "processes of an earlier attempt cannot be ended", "pid " + pids, "reboot the node"
        )
    for name in ("agent/cancel", "agent/strays.json", "agent/pulse"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(run.at(name))
    for name in ("workers", "faults", "logs"):
        os.makedirs(run.at(f"{name}/attempt-{attempt}"), exist_ok=True)
    for name in glob.glob(os.path.join(glob.escape(run.path), f"workers/attempt-{attempt}/*.json")):
        os.unlink(name)
    for name in ("metrics", "heartbeat"):
        os.makedirs(run.at(name), exist_ok=True)
    write_file(run.at("agent/ballast"), b"\0" * (64 << 10))


def agent_main(run: RunDir, request: Json, answer: int) -> None:
    """The daemon. ``answer``: the descriptor on which ``start`` waits for one JSON object."""

    def reply(value: Json) -> None:
        with contextlib.suppress(OSError):  # the client may be gone; the run goes on
            os.write(answer, json.dumps(value).encode())
        os.close(answer)

    lock = take_lock(run, bool(request.get("held")))
    if lock is None:
        reply({"error": AgentError("protocol", "the run already has a live agent", str(run.agent())).info})
        return
    prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: whoever forks away becomes our child
    agent: Agent | None = None
    try:
        prepare_attempt(run, request)
        agent = Agent(run, request)
        agent.save()
        agent.launch()
    except (AgentError, OSError) as error:
        problem = error if isinstance(error, AgentError) else os_problem("the run could not be started", error)
        if agent is not None:
            facts = {"message": message("{what}: {why}".format(**problem.info))}
            fault = describe_fault(run, agent.attempt, "start_failed", "launcher.log", **facts)
            agent.finish("FAILED", "start_failed", fault)
        reply({"error": problem.info})
        return
    signal.signal(signal.SIGTERM, lambda *_: setattr(agent, "terminated", True))
    reply({"agent": agent.identity["pid"], "launcher": agent.launcher, "attempt": agent.attempt})
    agent.finish(*agent.supervise())
    os.close(lock)


def daemonise(run: RunDir, request: Json, answer: int) -> None:
    """Become a process of its own: new session, no terminal, own log. Never returns."""
    os.setsid()
    if os.fork():
        os._exit(0)
    code = 1
    try:
        os.chdir(run.path)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDONLY)
        log = os.open(
            run.at("logs/attempt-{}/agent.log".format(request["attempt"])),
            os.O_WRONLY | os.O_CREAT | os.O_APPEND,
            0o644,
        )
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        agent_main(run, request, answer)
        code = 0
    except BaseException as error:
        talk(f"agent failed: {error!r}")
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def read_answer(reader: int, bound: float) -> bytes:
    """Everything that arrives on a pipe until its end, or within ``bound`` seconds."""
    text, deadline = b"", time.monotonic() + bound
    while select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
        part = os.read(reader, CHUNK)
        if not part:
            break
        text += part
    return text


def fence_of(run: RunDir) -> int:
    """The first attempt that may run on this node; earlier ones were given up, whatever still asks for them."""
    number = (read_json(run.at("agent/fence.json")) or {}).get("attempt")
    return number if isinstance(number, int) else 0


def verb_start(run_dir: str) -> Json:
    run = RunDir(run_dir)
    run.must_exist()
    request = read_request()
    for key, own in (("run_id", run.run_id), ("node", run.node)):
        if request.get(key, own) != own:
            raise AgentError("protocol", f"the directory is of {key} {own}, not {request[key]}")
    fence = fence_of(run)
    if int(request["attempt"]) < fence:
        why = "attempt {} is over: the run goes on from attempt {}".format(request["attempt"], fence)
        raise AgentError("fenced", "this node was given up", why, "start a later attempt")
    bundle = request.get("bundle") or run.bundle
    if bundle and not os.path.isdir(bundle):
        raise AgentError("no_run", "the code bundle is not on the node", bundle, "submit or resume again")
    for name in ("agent", "logs/attempt-{}".format(int(request["attempt"]))):
        os.makedirs(run.at(name), exist_ok=True)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        daemonise(run, request, writer)
    os.close(writer)
    os.waitpid(child, 0)
    text = read_answer(reader, 30.0)
    if not text:
        why = read_tail(run.at("logs/attempt-{}/agent.log".format(request["attempt"])), 2000).decode("utf-8", "replace")
        raise AgentError("protocol", "the agent gave no answer", why)
    return dict(json.loads(text))


def held_request(run: RunDir) -> Json:
    """The request that a client left in the run directory, with what the scheduler says in the environment. Secrets
    are read once and deleted, unless attempts follow that nobody else starts (``again``)."""
    request = read_json(run.at("agent/request.json"))
    if request is None:
        raise AgentError("no_run", "nobody asked for a start here", run.at("agent/request.json"))
    request["held"] = True
    host = os.environ.get("SLURMD_NODENAME") or os.uname().nodename
    request["where"] = {"host": host, "job": os.environ.get("SLURM_JOB_ID", ""), **(request.get("where") or {})}
    for name in ("attempt", "master_port"):
        request[name] = int(os.environ.get("OSTRAIN_" + name.upper()) or request.get(name) or 0)
    request["secrets"] = read_json(run.at("agent/secrets.json")) or {}
    if not request.get("again"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(run.at("agent/secrets.json"))
    return request


def verb_hold(run_dir: str) -> int:
    """As ``start``, but in the foreground until the attempt's end: a scheduler's job step lives exactly as long as its
    agent, and the scheduler's kill reaches it. Exit code 0: succeeded, 5: cancelled, else 1."""
    run = RunDir(run_dir)
    try:
        run.must_exist()
        request = held_request(run)
        attempt = int(request["attempt"])
        for name in ("agent", f"logs/attempt-{attempt}"):
            os.makedirs(run.at(name), exist_ok=True)
        log = os.open(run.at(f"logs/attempt-{attempt}/agent.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except (AgentError, OSError, KeyError, ValueError) as error:
        talk(f"the attempt cannot be started: {error}")
        return 1
    null = os.open(os.devnull, os.O_RDWR)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.chdir(run.path)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    agent_main(run, request, null)
    state = run.state()
    if state.get("attempt") != attempt:
        return 1
    if state.get("state") in HELD_EXITS:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(run.at("agent/secrets.json"))
    return HELD_EXITS.get(str(state.get("state")), 1)


# ---------------------------------------------------------------------------------------------------------------------
# worker: wraps one worker
# ---------------------------------------------------------------------------------------------------------------------


def worker_identity(env: dict[str, str]) -> tuple[str, int | None]:
    if env.get("MS_ROLE") == "MS_SCHED":
        return "scheduler", None
    for name in ("RANK_ID", "OMPI_COMM_WORLD_RANK"):
        if env.get(name, "").isdigit():
            return "worker", int(env[name])
    return "worker", 0


def watched_agent() -> Callable[[], bool]:
    """A check that the agent lives. Without one (``launch.sh`` by hand) there is nobody to outlive."""
    pid, _, start = os.environ.get("OSTRAIN_AGENT_ID", "").partition(":")
    if not (pid.isdigit() and start.isdigit()):
        return lambda: True
    return lambda: is_alive(int(pid), int(start))


def spawn_worker(command: list[str], outputs: tuple[int, int] = (1, 2)) -> int:
    """Fork and execute, in a process group of its own: a launcher that kills its group must not keep us from
    recording the end."""
    wrapper = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        die_with_parent(wrapper)
        os.setpgid(0, 0)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        for place in (1, 2):
            if outputs[place - 1] != place:
                os.dup2(outputs[place - 1], place)
        os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"cannot execute {command[0]}: {error}\n")
        sys.stderr.flush()
    os._exit(127)


def verb_worker(command: list[str]) -> int:
    run_dir, attempt = os.environ.get("OSTRAIN_RUN_DIR"), os.environ.get("OSTRAIN_ATTEMPT", "1")
    role, rank = worker_identity(dict(os.environ))
    die_with_parent(os.getppid())
    name = "scheduler" if role == "scheduler" else f"rank-{rank}"
    path = os.path.join(run_dir or "", "workers", "attempt-" + attempt, name + ".json")
    me = own_identity()
    record: Json = {"role": role, "rank": rank, "pid": None, "wrapper_pid": me["pid"], "wrapper_start": me["start"]}
    record.update(started=time.time(), ended=None, exit_code=None, signal=None)
    plog = os.environ.get("ASCEND_PROCESS_LOG_PATH", "")
    if plog and len(plog) < 200:  # where the driver logs, as setup scripts and env.sh left it
        record["plog"] = plog

    def save() -> None:
        if run_dir:
            write_record(path, record)

    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    secrets = own_secrets()
    out, err, writer = masked_outputs((1, 2), secrets) if secrets else (1, 2, 0)
    record["writer_pid"] = writer
    record["pid"] = child = spawn_worker(command, (out, err))
    for handle in {out, err} - {1, 2}:
        os.close(handle)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: pass_on(child, number))
    save()
    status = wait_for(child, watched_agent())
    record["ended"] = time.time()
    # The last lines are on disk before the end is told, unless somebody else keeps the pipe open.
    written = not writer or wait_bounded(writer, 0.5)
    if os.WIFSIGNALED(status):
        record["signal"] = signal_name(os.WTERMSIG(status))
    else:
        record["exit_code"] = os.WEXITSTATUS(status)
    save()
    if not written:  # it ends with the last of its writers; they may be about to end
        wait_bounded(writer, 2.0)
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def pass_on(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(child, number)


def write_record(path: str, record: Json) -> None:
    """Write a worker's record. Its length never changes: when the disk is full the end fits where the start stood."""
    data = json.dumps(record).ljust(1023).encode() + b"\n"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_file(path, data)
    except OSError as error:
        talk(f"{path} not replaced: {error}")
        with contextlib.suppress(OSError):  # the exit code still reaches the launcher, and through it the agent
            handle = os.open(path, os.O_WRONLY)
            os.pwrite(handle, data, 0)
            os.close(handle)


def wait_bounded(child: int, bound: float) -> bool:
    """Whether a child ended in time."""
    deadline = time.monotonic() + bound
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            return False
        signal.sigtimedwait([signal.SIGCHLD], 0.02)
    return True


def wait_for(child: int, agent_lives: Callable[[], bool]) -> int:
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        if not agent_lives():  # reached when a launcher between the agent and us does not pass its death on
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1]
        signal.sigtimedwait([signal.SIGCHLD], 1.0)


# ---------------------------------------------------------------------------------------------------------------------
# status
# ---------------------------------------------------------------------------------------------------------------------


def last_json_line(path: str) -> Json | None:
    lines = read_tail(path, 8 << 10).split(b"\n")[:-1]  # what follows the last line end is not whole yet
    for line in reversed(lines):
        try:
            value = json.loads(line.decode("utf-8", "replace"))
        except ValueError:
            continue
        if isinstance(value, dict):
            return value
    return None


def read_progress(run: RunDir, steps: Any) -> Json | None:
    found = [last_json_line(path) for path in glob.glob(os.path.join(glob.escape(run.path), "metrics", "rank-*.jsonl"))]
    lines = [line for line in found if line is not None and isinstance(line.get("step"), int)]
    if not lines:
        return None
    line = max(lines, key=lambda line: (line.get("time") or 0, line["step"]))
    seconds = next((line[name] for name in ("seconds", "step_seconds", "seconds_per_step") if name in line), None)
    return {
        "step": line["step"],
        "steps": line.get("steps") or steps,
        "loss": line.get("loss"),
        "seconds": seconds,
        "time": line.get("time"),
        "attempt": line.get("attempt"),
    }


def read_checkpoints(run: RunDir) -> list[int]:
    steps = []
    for path in glob.glob(os.path.join(glob.escape(run.path), "checkpoints", "step-*", "manifest.json")):
        number = os.path.basename(os.path.dirname(path))[len("step-") :]
        if number.isdigit():
            steps.append(int(number))
    return sorted(steps)


def read_heartbeats(run: RunDir) -> Json:
    beats = {}
    for path in glob.glob(os.path.join(glob.escape(run.path), "heartbeat", "rank-*")):
        beat = read_json(path)
        if beat is not None:
            beats[os.path.basename(path)[len("rank-") :]] = beat
    return beats


def cancelled_state(reason: str) -> Json:
    """A run ended on purpose: CANCELLED when a person wanted it, else FAILED with the reason given."""
    return {"state": "CANCELLED" if reason == "cancelled" else "FAILED", "reason": reason}


def lost(run: RunDir, state: Json, attempt: int) -> Json:
    """What a state record that still says RUNNING means when its agent is gone."""
    cancel = run.cancel()
    if cancel is not None and not state.get("fault"):  # the agent died of it, or before it could say so
        return {**cancelled_state(str(cancel.get("reason") or "cancelled")), "fault": None}
    rebooted = bool(state.get("boot_id")) and state.get("boot_id") != boot_id()
    reason = "node_rebooted" if rebooted else "agent_lost"
    fault = state.get("fault")
    if fault:  # the agent died while it ended the others
        reason = fault["reason"]
    else:
        what = "the node started anew under the run" if rebooted else "the node agent ended without a last word"
        fault = describe_fault(run, attempt, reason, "agent.log", pid=state.get("pid"), message=message(what))
        with contextlib.suppress(OSError):
            fault["time"] = os.stat(run.at("agent/state.json")).st_mtime
    return {"state": "FAILED", "reason": reason, "fault": fault}


def status(run_dir: str) -> Json:
    """The status object of docs/run-directory.md. Whatever file is missing or broken, there is an answer."""
    run = RunDir(run_dir)
    run.must_exist()
    identity = run.agent()
    alive = same_boot_alive(identity)
    state = run.state()  # read after the agent was looked at: it writes its last word before it ends
    attempt = run.attempt()
    word, reason, fault = state.get("state", "NONE"), state.get("reason", "preparing"), state.get("fault")
    if word == "NONE" and (identity is not None or os.path.exists(run.at("agent/state.json"))):
        word, reason = "RUNNING", "running"  # its record is broken, or not written yet
    held, silence = bool(state.get("held")), 0
    if word == "RUNNING" and held:  # maybe on another machine: whether it is lost its scheduler knows
        silence = run.silence()
        alive = silence < SILENT
    elif word == "RUNNING" and not alive:
        verdict = lost(run, state, attempt)
        word, reason, fault = verdict["state"], verdict["reason"], verdict["fault"]
    keys = ("rank", "pid", "state", "exit_code", "signal", "started", "ended")
    workers = [record for record in read_workers(run, attempt) if record.get("role") != "scheduler"]
    for record in workers if held and word == "RUNNING" else []:
        record["state"] = "running" if record.get("ended") is None else "ended"
    return {
        "node": run.node,
        "time": time.time(),
        "utc_offset": time.localtime().tm_gmtoff,
        "attempt": attempt,
        "state": word,
        "reason": reason,
        "agent": {"alive": alive, "pid": (identity or {}).get("pid"), "silence": silence},
        "where": state.get("where"),
        "fault": fault,
        "workers": [{key: record.get(key) for key in keys} for record in workers],
        "progress": read_progress(run, state.get("steps")),
        "checkpoints": read_checkpoints(run),
        "heartbeat": read_heartbeats(run),
    }


# ---------------------------------------------------------------------------------------------------------------------
# stacks: what every worker is at
# ---------------------------------------------------------------------------------------------------------------------


def catches(pid: int, number: int) -> bool:
    """Whether a process handles a signal (SigCgt of proc(5)): without a handler SIGUSR1 would end it."""
    try:
        with open(f"/proc/{pid}/status") as file:
            masks = [line.split()[1] for line in file if line.startswith("SigCgt:")]
    except (OSError, IndexError):
        return False
    return bool(masks) and bool(int(masks[0], 16) >> (number - 1) & 1)


def wait_channel(pid: int, thread: int) -> str:
    """The kernel function a thread sleeps in; empty where it runs or the kernel does not tell."""
    try:
        with open(f"/proc/{pid}/task/{thread}/wchan") as file:
            name = file.read().strip()
    except OSError:
        return ""
    return "" if name == "0" else name


def blocked_threads(pid: int) -> set[int]:
    """Threads in uninterruptible sleep: they wait for a disk, a file server or a device."""
    found = set()
    for name in glob.glob(f"/proc/{pid}/task/[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended
            with open(name, "rb") as file:
                text = file.read()
            if text[text.rfind(b")") + 2 :][:1] == b"D":
                found.add(int(name.split("/")[4]))
    return found


class StackDump:
    """One worker asked for its stacks."""

    def __init__(self, run: RunDir, attempt: int, record: Json) -> None:
        self.record, self.pid = record, int(record["pid"] or 0)
        self.path = run.at("stacks/attempt-{}/rank-{}.txt".format(attempt, record["rank"]))
        self.before = self.size = self.length()
        self.changed = time.monotonic()
        process = read_process(self.pid) if self.pid else None
        own = process is not None and process.ppid == record["wrapper_pid"]  # not a stranger with a reused pid
        self.alive = own and record["state"] == "running"
        self.blocked = blocked_threads(self.pid) if self.alive else set()
        self.asked = False
        # A stopped one could not answer before it goes on.
        able = self.alive and process is not None and process.state not in "Tt"
        if able and self.before is not None and catches(self.pid, signal.SIGUSR1):
            self.ask()

    def length(self) -> int | None:
        try:
            return os.stat(self.path).st_size
        except OSError:
            return None

    def ask(self) -> None:
        with contextlib.suppress(OSError):
            if (self.before or 0) > STACKS_KEPT:
                os.truncate(self.path, 0)  # the worker appends, wherever the end is
                self.before = self.size = 0
            os.kill(self.pid, signal.SIGUSR1)
            self.asked = True

    def whole(self) -> bool:
        """Whether there is nothing to wait for any more."""
        if not self.asked:
            return True
        now = self.length()
        if now != self.size:
            self.size, self.changed = now, time.monotonic()
        return now != self.before and time.monotonic() - self.changed > STACK_QUIET

    def answer(self, beats: Json) -> Json:
        process = read_process(self.pid) if self.alive else None
        told: Json = {"worker": self.record["state"], "pid": self.pid or None, "state": "", "wchan": "", "stack": ""}
        beat = beats.get(str(self.record["rank"])) or {}
        # An earlier attempt's heartbeat says nothing of this process.
        told["heartbeat"] = beat if (beat.get("time") or 0) >= (self.record.get("started") or 0) else None
        if process is not None:
            stuck = sorted(self.blocked & blocked_threads(self.pid)) if process.state not in "TtD" else []
            told["state"] = "D" if stuck else process.state
            told["wchan"] = wait_channel(self.pid, stuck[0] if stuck else self.pid)
        if self.asked and self.length() != self.before:
            with contextlib.suppress(OSError), open(self.path, "rb") as file:
                file.seek(self.before or 0)
                told["stack"] = file.read(STACK_LIMIT).decode("utf-8", "replace")
        return told


def verb_stacks(run_dir: str) -> Json:
    """Ask all workers of the attempt at once for their stacks; what each wrote within ``wait`` seconds, and the state
    of its process. A stopped or blocked one writes nothing: its state says why."""
    run = RunDir(run_dir)
    run.must_exist()
    bound = min(10.0, float(read_request().get("wait", STACK_WAIT)))
    attempt = run.attempt()
    records = [record for record in read_workers(run, attempt) if record.get("rank") is not None]
    dumps = [StackDump(run, attempt, record) for record in records]
    deadline = time.monotonic() + bound
    while [dump for dump in dumps if not dump.whole()] and time.monotonic() < deadline:
        time.sleep(0.03)
    beats = read_heartbeats(run)
    ranks = {str(dump.record["rank"]): dump.answer(beats) for dump in dumps}
    return {"node": run.node, "time": time.time(), "attempt": attempt, "ranks": ranks}


# ---------------------------------------------------------------------------------------------------------------------
# evidence: what a fault left behind outside the run directory
# ---------------------------------------------------------------------------------------------------------------------


def process_logs(run: RunDir, attempt: int, records: list[Json], limit: int) -> list[Json]:
    """Ends of CANN's host logs of the attempt's processes: ``{debug,run}/plog/plog-<pid>_<time>.log`` below
    ASCEND_PROCESS_LOG_PATH, or below ~/ascend/log (older releases: ``plog/`` alone)."""
    logs = run.at(f"logs/attempt-{attempt}/plog")
    usual = os.path.expanduser("~/ascend/log")
    found = {}
    for record in records:
        for place in {str(record.get("plog") or logs), logs, usual}:
            for part in ("debug/plog", "run/plog", "plog"):
                pattern = os.path.join(glob.escape(os.path.join(place, part)), "plog-{}_*".format(record.get("pid")))
                found.update(dict.fromkeys(glob.glob(pattern), record))
    answers = []
    for path, record in sorted(found.items())[:EVIDENCE_FILES]:
        with contextlib.suppress(OSError):
            facts = os.stat(path)
            if facts.st_mtime < float(record.get("started") or 0) - 1:
                continue  # of an earlier process with the same pid
            text = read_tail(path, limit).decode("utf-8", "replace")
            answers.append({"path": path, "rank": record.get("rank"), "size": facts.st_size, "text": text})
    return answers


def kernel_lines(since: float) -> list[Json]:
    """What the kernel said since then of processes it killed, of memory, disks, links and devices; nothing where the
    account may not read it. Format: /dev/kmsg of the kernel's ABI documentation."""
    lines = []
    shift = time.time() - time.monotonic()
    try:
        handle = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return []
    with contextlib.suppress(OSError, ValueError, IndexError):  # EAGAIN: that was all
        for _ in range(20000):
            try:
                head, _, text = os.read(handle, 8192).decode("utf-8", "replace").partition(";")
            except BrokenPipeError:  # lines went that were not read yet
                continue
            moment = int(head.split(",")[2]) / 1e6 + shift
            if moment >= since and KERNEL_LINES.search(text):
                lines.append({"time": moment, "text": text.split("\n")[0][:500]})
    os.close(handle)
    return lines[-200:]


def verb_evidence(run_dir: str) -> Json:
    """The driver's logs of the attempt's processes and the kernel's lines about them."""
    run = RunDir(run_dir)
    run.must_exist()
    request = read_request()
    attempt = int(request.get("attempt") or run.attempt())
    records = read_workers(run, attempt)
    started = min([float(record["started"]) for record in records], default=time.time())
    plogs = process_logs(run, attempt, records, min(EVIDENCE_LIMIT, int(request.get("limit") or EVIDENCE_LIMIT)))
    return {"node": run.node, "time": time.time(), "plogs": plogs, "kernel": kernel_lines(started)}


# ---------------------------------------------------------------------------------------------------------------------
# follow
# ---------------------------------------------------------------------------------------------------------------------


def whole_characters(data: bytes) -> bytes:
    """``data`` without the beginning of a UTF-8 character at its end."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    decoder.decode(data)
    pending = decoder.getstate()[0]
    return data[: len(data) - len(pending)] if pending else data


class Follower:
    """Reads files from offsets on; every byte once."""

    def __init__(self, run_dir: str, request: Json) -> None:
        self.run_dir = os.path.abspath(run_dir)
        self.cursors: dict[str, int] = {str(path): int(end) for path, end in request.get("cursors", {}).items()}
        self.patterns: list[str] = [pattern for pattern in request.get("patterns", []) if inside(pattern)]
        self.until_final = bool(request.get("until_final", True))
        self.last: Json = {}

    def paths(self) -> list[str]:
        root = glob.escape(self.run_dir)
        found = {path for pattern in self.patterns for path in glob.glob(os.path.join(root, pattern), recursive=True)}
        return sorted(os.path.relpath(path, self.run_dir) for path in found if os.path.isfile(path))

    def read(self, path: str, last: bool) -> Iterator[Json]:
        """What a file has beyond its cursor. An incomplete character waits for its rest, unless this is the ``last``
        look."""
        try:
            with open(os.path.join(self.run_dir, path), "rb") as file:
                while True:
                    offset = self.cursors.get(path, 0)
                    file.seek(offset)
                    data = file.read(CHUNK)
                    text = data if last and len(data) < CHUNK else whole_characters(data)
                    if not text:
                        return
                    self.cursors[path] = offset + len(text)
                    frame = {"path": path, "offset": offset, "end": self.cursors[path]}
                    yield {**frame, "text": text.decode("utf-8", "surrogateescape")}
        except OSError as error:
            talk(f"cannot read {path}: {error}")

    def pass_over(self, last: bool = False) -> Iterator[Json]:
        for path in self.paths():
            yield from self.read(path, last)

    def round(self) -> tuple[bool, Iterator[Json]]:
        """Whether this is the end, and the frames of one look. The status is read first: when it is final, everything
        was written before."""
        now = status(self.run_dir)
        final = now["state"] in FINAL
        ending = not self.until_final or final

        def frames() -> Iterator[Json]:
            if final and now["reason"] in ("agent_lost", "node_rebooted"):
                yield from self.pass_over()
                time.sleep(0.5)  # workers of a lost agent are dying, not dead
            yield from self.pass_over(last=final)
            if {**now, "time": 0} != self.last:
                self.last = {**now, "time": 0}
                yield {"status": now}

        return ending, frames()


def verb_follow(run_dir: str) -> int:
    line = sys.stdin.buffer.readline()
    request = json.loads(line or b"{}")
    return pour(Follower(run_dir, request).round, float(request.get("keepalive") or 0))


def pour(look: Callable[[], tuple[bool, Iterator[Json]]], keepalive: float) -> int:
    """Write the frames of one look after another until the last, or until nobody reads."""
    heard = ticked = time.monotonic()

    def put(frame: Json) -> None:
        sys.stdout.write(json.dumps(frame) + "\n")

    try:
        while True:
            ending, frames = look()
            for frame in frames:
                put(frame)
                ticked = time.monotonic()
            if ending:
                put({"end": True})
            elif time.monotonic() - ticked >= TICK:
                put({"tick": time.time()})
                ticked = time.monotonic()
            sys.stdout.flush()
            if ending:
                return 0
            if select.select([0], [], [], POLL)[0]:
                if not os.read(0, CHUNK):
                    return 0
                heard = time.monotonic()
                time.sleep(POLL)
            if keepalive and time.monotonic() - heard > keepalive:
                return 0  # the client is gone though its connection does not know
    except AgentError as error:
        put({"error": error.info})
        return 1
    except CONNECTION_FAILURES:
        os._exit(0)  # nobody reads; flushing at exit would only fail again


# ---------------------------------------------------------------------------------------------------------------------
# stop, remove
# ---------------------------------------------------------------------------------------------------------------------


def end_by_agent(run: RunDir, identity: Json, bound: float) -> Json:
    """Let the live agent end the run; when it does not within ``bound`` seconds, end everything and then the agent."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(identity["pid"], signal.SIGCONT)
    deadline = time.monotonic() + bound
    while same_boot_alive(identity) and time.monotonic() < deadline:
        time.sleep(0.05)
    if not same_boot_alive(identity):
        return {"killed": [], "survivors": []}
    report = Ending(run, run.attempt(), identity).run_to_end(0.0)
    with contextlib.suppress(ProcessLookupError):
        os.kill(identity["pid"], signal.SIGKILL)
    return report


def verb_stop(run_dir: str) -> Json:
    """End every process of the run on this node and say which. A run that has ended keeps its state."""
    run = RunDir(run_dir)
    run.must_exist()
    request = read_request()
    return end_run(run, float(request.get("grace", 10.0)), str(request.get("reason") or "cancelled"))


def verb_fence(run_dir: str) -> Json:
    """Give up every attempt before ``attempt`` on this node: none of them can start here again, what runs is ended."""
    run = RunDir(run_dir)
    run.must_exist()
    request = read_request()
    number = int(request["attempt"])
    os.makedirs(run.at("agent"), exist_ok=True)
    run.insist("agent/fence.json", {"attempt": max(number, fence_of(run)), "time": time.time()})
    if run.attempt() >= number:
        return {"killed": [], "survivors": [], "state": run.state().get("state", "NONE")}
    return end_run(run, float(request.get("grace", 2.0)), "superseded")


def end_run(run: RunDir, grace: float, reason: str) -> Json:
    """The kill report of docs/run-directory.md."""
    os.makedirs(run.at("agent"), exist_ok=True)
    identity = run.agent()
    if status(run.path)["state"] not in FINAL:
        run.insist("agent/cancel", {"time": time.time(), "reason": reason, "grace": grace})
    reports = []
    if identity and same_boot_alive(identity):
        reports.append(end_by_agent(run, identity, grace + KILL_BOUND + 3.0))
        reports.insert(0, run.state().get("report") or {})
    reports.append(Ending(run, run.attempt(), None).run_to_end(grace))  # what a dead agent left behind
    state = run.state()
    if state.get("state", "NONE") not in FINAL:
        state = {"run_id": run.run_id, "node": run.node, "attempt": run.attempt(), **state}
        state.update(lost(run, state, state["attempt"]), ended=time.time())
        if reports[-1]["survivors"] and state["state"] == "CANCELLED":
            state["reason"] = "survivors"
        run.event(state["attempt"], "ended", state=state["state"], reason=state["reason"])
        run.insist("agent/state.json", state)
    killed = {(entry["pid"], entry["signal"]): entry for report in reports for entry in report.get("killed", [])}
    return {"killed": list(killed.values()), "survivors": reports[-1]["survivors"], "state": state["state"]}


def verb_remove(run_dir: str) -> Json:
    run = RunDir(run_dir)
    run.must_exist()
    identity = run.agent()
    tagged, untagged = family(run, identity, all_processes())
    live = [process.pid for process in tagged + untagged]
    if same_boot_alive(identity) and identity:
        live.append(identity["pid"])
    if live:
        pids = ", ".join(map(str, sorted(live)))
        raise AgentError("protocol", "the run still has processes", "pid " + pids, "ostrain cancel " + run.run_id)
    doomed = tempfile.mkdtemp(prefix=".removing-", dir=os.path.dirname(run.path))
    os.rename(run.path, os.path.join(doomed, "run"))
    shutil.rmtree(doomed)
    with contextlib.suppress(OSError):  # another node's directory of the same run may be beside it
        os.rmdir(os.path.dirname(run.path))
    return {"removed": run.path}


# ---------------------------------------------------------------------------------------------------------------------
# unpack, have, stage, fetch, files
# ---------------------------------------------------------------------------------------------------------------------


def own_root() -> str:
    """``<root>`` of ``<root>/bin/agent-<hash>.py``."""
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def content_folder(kind: str, digest: str) -> str:
    if kind not in ("bundles", "files") or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise AgentError("protocol", f"not a kind and a SHA-256: {kind} {digest}")
    return os.path.join(own_root(), kind, digest)


def verb_have() -> Json:
    """Which of the asked-for hashes are missing."""
    request = read_request()
    wanted = [(kind, digest) for kind in ("bundles", "files") for digest in request.get(kind, [])]
    missing = [[kind, digest] for kind, digest in wanted if not os.path.isdir(content_folder(kind, digest))]
    return {"missing": missing}


def checked_member(member: tarfile.TarInfo, target: str) -> str:
    """Where a member goes, inside ``target``; an error for everything else an archive can hold."""
    path = os.path.join(target, member.name)
    parent = os.path.realpath(os.path.dirname(path)) + "/"
    safe = inside(member.name) and parent.startswith(os.path.realpath(target) + "/")
    if safe and member.issym():
        link = os.path.normpath(os.path.join(os.path.dirname(member.name), member.linkname))
        safe = not os.path.isabs(member.linkname) and link.split("/")[0] != ".."
    if not safe or not (member.isfile() or member.isdir() or member.issym()):
        raise AgentError("protocol", "the archive holds an unsafe member", repr(member.name))
    return path


def extract(archive: IO[bytes], target: str) -> None:
    import tarfile

    with tarfile.open(fileobj=archive, mode="r:gz") as tar:
        for member in tar:
            path = checked_member(member, target)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if member.isdir():
                os.makedirs(path, exist_ok=True)
            elif member.issym():
                os.symlink(member.linkname, path)
            else:
                source = tar.extractfile(member)
                handle = os.open(
                    path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, member.mode & 0o755 | 0o600
                )
                with os.fdopen(handle, "wb") as file:
                    shutil.copyfileobj(source, file) if source else None
                    file.flush()
                    os.fsync(file.fileno())


def verb_unpack(kind: str, digest: str) -> Json:
    """Whole or not at all: under a temporary name, hash checked, renamed. Two at once do no harm."""
    import tarfile

    target = content_folder(kind, digest)
    folder = os.path.dirname(target)
    os.makedirs(folder, exist_ok=True)
    temporary = tempfile.mkdtemp(prefix=".tmp-", dir=folder)
    try:
        with tempfile.TemporaryFile(dir=temporary) as archive:
            seen = hashlib.sha256()
            for part in iter(lambda: sys.stdin.buffer.read(1 << 20), b""):
                seen.update(part)
                archive.write(part)
            if seen.hexdigest() != digest:
                raise AgentError("protocol", "the archive arrived damaged", "SHA-256 is " + seen.hexdigest())
            archive.seek(0)
            content = os.path.join(temporary, "content")
            os.mkdir(content)
            try:
                extract(archive, content)
            except (tarfile.TarError, EOFError, zlib.error) as error:
                raise AgentError("protocol", "the archive cannot be read", str(error)) from error
        try:
            os.rename(content, target)
            sync_folder(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {"path": target}


def verb_stage(run_dir: str) -> Json:
    run = RunDir(run_dir)
    request = read_request()
    for entry in request.get("files", []):
        if not inside(entry["path"]):
            raise AgentError("protocol", "a file outside the run directory", repr(entry["path"]))
        path = run.at(entry["path"])
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_file(path, entry["text"].encode("utf-8", "surrogateescape"), int(entry.get("mode", 0o644)))
    for folder in ("agent", "files", "logs"):
        os.makedirs(run.at(folder), exist_ok=True)
    for name, digest in request.get("links", {}).items():
        if not inside(name) or "/" in name:
            raise AgentError("protocol", "not a name for a link", repr(name))
        temporary = run.at("files/.tmp-" + digest)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        os.symlink(os.path.join(content_folder("files", digest), "content"), temporary)
        os.replace(temporary, run.at("files/" + name))
    bundle = content_folder("bundles", request["bundle"]) if request.get("bundle") else ""
    staged = {"run_id": request.get("run_id"), "node": request.get("node"), "bundle": bundle}
    write_json(run.at("agent/staged.json"), staged)
    return {"run_dir": run.path}


def verb_fetch(run_dir: str) -> Json:
    """One file's content, from ``offset`` on. ``path`` is relative to the run directory."""
    run = RunDir(run_dir)
    run.must_exist()
    request = read_request()
    path, limit = request["path"], int(request.get("limit", 64 << 20))
    if not inside(path):
        raise AgentError("protocol", "a file outside the run directory", repr(path))
    try:
        with open(run.at(path), "rb") as file:
            file.seek(int(request.get("offset", 0)))
            data = file.read(limit)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise AgentError("no_run", f"no file {path} in the run directory", str(error)) from error
    return {"data": base64.b64encode(data).decode()}


def verb_put(run_dir: str) -> Json:
    """Append a part to a file of the run directory; the last part checks the whole and renames it into place.

    Standard input: a line of JSON ``{path, offset, size, sha256}`` (size and sha256 of the whole file), then bytes.
    """
    run = RunDir(run_dir)
    run.must_exist()
    head = json.loads(sys.stdin.buffer.readline())
    path, offset, size = head["path"], int(head["offset"]), int(head["size"])
    if not inside(path):
        raise AgentError("protocol", "a file outside the run directory", repr(path))
    folder, name = os.path.split(run.at(path))
    part = os.path.join(folder, f".{name}.part")
    os.makedirs(folder, exist_ok=True)
    with open(part, "r+b" if offset else "w+b") as file:
        file.truncate(offset)
        file.seek(offset)
        shutil.copyfileobj(sys.stdin.buffer, file)
        reached = file.tell()
        file.flush()
        os.fsync(file.fileno())
    if reached >= size:
        if reached > size or file_hash(part) != head["sha256"]:
            os.unlink(part)
            raise AgentError("protocol", path + " arrived damaged", f"{reached} bytes of {size}", "send it again")
        os.replace(part, run.at(path))
        sync_folder(folder)
    return {"size": reached}


def file_hash(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for part in iter(lambda: file.read(1 << 22), b""):
            digest.update(part)
    return digest.hexdigest()


def verb_files(run_dir: str) -> Json:
    """Sizes of the files that match ``patterns`` in the run directory; where ``hash`` is set their SHA-256, too."""
    run = RunDir(run_dir)
    run.must_exist()
    request = read_request()
    files = {}
    for pattern in request["patterns"]:
        if not inside(pattern):
            raise AgentError("protocol", "a pattern outside the run directory", repr(pattern))
        for path in glob.glob(os.path.join(glob.escape(run.path), pattern)):
            try:
                size = os.stat(path).st_size
                digest = file_hash(path) if request.get("hash") and os.path.isfile(path) else None
            except OSError as error:  # it went meanwhile, or cannot be read
                size, digest = -1, os_problem("cannot be read", error).info["why"]  # no size fits that
            if not os.path.isdir(path):
                files[os.path.relpath(path, run.path)] = {"size": size, "sha256": digest}
    return {"files": files}


# ---------------------------------------------------------------------------------------------------------------------
# probe
# ---------------------------------------------------------------------------------------------------------------------


def probe_root(root: str, least: int, problems: list[Json]) -> Json:
    """Space and writability of the nearest folder that exists."""
    root = os.path.abspath(os.path.expanduser(root))
    base = root
    while not os.path.isdir(base) and base != "/":
        base = os.path.dirname(base)
    numbers = os.statvfs(base)
    free = numbers.f_bavail * numbers.f_frsize
    writable = os.access(base, os.W_OK | os.X_OK)
    if not writable:
        what = f"cannot write to {root}"
        problems.append(AgentError("permission", what, base + " is not writable", "name another `root`").info)
    if free < least:
        why = f"{free / 1e9:.1f} GB free, {least / 1e9:.1f} GB wanted"
        problems.append(AgentError("disk_full", "too little space in " + root, why, "free space there").info)
    return {"path": root, "free_bytes": free, "total_bytes": numbers.f_blocks * numbers.f_frsize, "writable": writable}


def probe_modules(names: list[str], problems: list[Json]) -> Json:
    from importlib import metadata

    found: Json = {}
    for name in names:
        try:
            present = importlib.util.find_spec(name) is not None
        except (ImportError, ValueError):
            present = False
        try:
            found[name] = (metadata.version(name) if present else None) or ""
        except metadata.PackageNotFoundError:
            found[name] = ""
        if not present:
            found[name] = None
            what = f"no Python module {name}"
            todo = f"{sys.executable} -m pip install {name}, or name another `python` in the inventory"
            problems.append(AgentError("module_missing", what, "not importable by " + sys.executable, todo).info)
    return found


def probe_programs(names: list[str], problems: list[Json]) -> Json:
    path = os.path.dirname(sys.executable) + ":" + os.environ.get("PATH", os.defpath)
    found: Json = {name: shutil.which(name, path=path) for name in names}
    for name, place in found.items():
        if place is None:
            problems.append(AgentError("program_missing", "no program " + name, "PATH is " + path, "install it").info)
    return found


def probe_devices(wanted: list[int], problems: list[Json]) -> list[int]:
    names = [os.path.basename(path)[len("davinci") :] for path in glob.glob("/dev/davinci*")]
    found = sorted(int(name) for name in names if name.isdigit())
    missing = sorted(set(wanted) - set(found))
    if missing:
        what = "no device {}".format(", ".join(map(str, missing)))
        why = "/dev/davinci* are: {}".format(", ".join(map(str, found)) or "none")
        problems.append(AgentError("devices_missing", what, why, "correct `devices` in the inventory").info)
    return found


def bind_problem(address: str, port: int) -> str:
    """Why a port cannot be listened on; empty when it can."""
    import socket

    try:
        family_, kind, protocol, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        with contextlib.closing(socket.socket(family_, kind, protocol)) as test:
            test.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            test.bind(where)
            test.listen(1)
    except OSError as error:
        return str(error)
    return ""


def probe_port(address: str, port: int, problems: list[Json]) -> int | None:
    """The port if it is free; with 0 any free one below the range of outgoing connections."""
    if port:
        why = bind_problem(address, port)
        if why:
            what = f"port {port} of {address} cannot be used"
            todo = "name another master_port, or 0 to have one picked"
            problems.append(AgentError("port_taken", what, why, todo).info)
        return None if why else port
    for candidate in random.sample(range(20000, 32000), 50):
        why = bind_problem(address, candidate)
        if not why:
            return candidate
    problems.append(AgentError("port_taken", "no free port on " + address, why, "check master_address").info)
    return None


def verb_probe() -> Json:
    """Look, change nothing. ``problems`` holds every failed check."""
    request = read_request()
    problems: list[Json] = []
    answer: Json = {"hostname": os.uname().nodename, "uid": os.getuid(), "boot_id": boot_id(), "time": time.time()}
    answer["python"] = {"executable": sys.executable, "version": sys.version.split()[0]}
    answer["root"] = probe_root(request.get("root") or own_root(), int(request.get("min_free_bytes") or 0), problems)
    answer["modules"] = probe_modules(list(request.get("modules") or []), problems)
    answer["programs"] = probe_programs(list(request.get("programs") or []), problems)
    answer["devices"] = probe_devices(list(request.get("devices") or []), problems)
    answer["port"] = None
    if request.get("master_address"):
        answer["port"] = probe_port(request["master_address"], int(request.get("master_port") or 0), problems)
    answer["problems"] = problems
    return answer


# ---------------------------------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------------------------------


def read_request() -> Json:
    text = sys.stdin.buffer.read()
    value = json.loads(text) if text.strip() else {}
    if not isinstance(value, dict):
        raise AgentError("protocol", "the request is not a JSON object")
    return value


VERBS: dict[str, tuple[int, Callable[..., Json]]] = {
    "probe": (0, verb_probe),
    "port": (0, verb_probe),  # nothing but a free port: a session may answer, which knows no modules
    "have": (0, verb_have),
    "unpack": (2, verb_unpack),
    "stage": (1, verb_stage),
    "start": (1, verb_start),
    "status": (1, status),
    "stacks": (1, verb_stacks),
    "evidence": (1, verb_evidence),
    "stop": (1, verb_stop),
    "remove": (1, verb_remove),
    "fetch": (1, verb_fetch),
    "files": (1, verb_files),
    "fence": (1, verb_fence),
    "put": (1, verb_put),
}


def run_verb(verb: str, arguments: list[str]) -> int:
    count, function = VERBS[verb]
    try:
        if len(arguments) != count:
            raise AgentError("protocol", f"{verb} takes {count} arguments")
        answer = function(*arguments)
    except AgentError as error:
        answer = {"error": error.info}
    except OSError as error:
        answer = {"error": os_problem(f"{verb} failed", error).info}
    except (ValueError, KeyError, TypeError) as error:
        answer = {"error": AgentError("protocol", f"{verb} did not understand its request", repr(error)).info}
    print(json.dumps(answer))
    if "error" in answer:
        sys.stderr.write("{}: {}\n".format(answer["error"]["what"], answer["error"]["why"]))
    return 1 if "error" in answer else 0


def serve() -> None:
    """Verbs of one client, one after the other: a line {verb, arguments, size}, so many bytes of input; a line back."""
    source = sys.stdin.buffer
    while select.select([source], [], [], SERVE_IDLE)[0]:
        line = source.readline()
        if not line:
            return
        request = json.loads(line)
        data = source.read(int(request["size"]))
        if os.path.exists(__file__):
            sys.stdin = io.TextIOWrapper(io.BytesIO(data))
            run_verb(request["verb"], request["arguments"])
        else:  # somebody tidied up; workers need the file
            print(json.dumps({"gone": True}))
        sys.stdout.flush()


def main(arguments: list[str]) -> int:
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if verb == "worker" and len(rest) > 1 and rest[0] == "--":
        return verb_worker(rest[1:])
    if verb == "follow" and len(rest) == 1:
        return verb_follow(rest[0])
    if verb == "hold" and len(rest) == 1:
        return verb_hold(rest[0])
    if verb in VERBS:
        return run_verb(verb, rest)
    sys.stderr.write("usage: agent.py {} …\n".format("|".join([*VERBS, "follow", "hold", "worker"])))
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

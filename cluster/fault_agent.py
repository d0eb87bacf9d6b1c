#!/usr/bin/env python3
"""Breaks something on one node on purpose, and mends it again by itself. The node's side of `ostrain drill`.

One file, standard library only, Python 3.8 or newer: its source goes to a node's Python on standard input.

    python - VERB REQUEST      REQUEST is a JSON object; one JSON object on standard output, exit 0, or {"error": …}, 1

Only processes of the run that is named are touched. What lasts is held by a detached process that undoes it after
``seconds``, when it is told to (``mend``), and, where the kernel can see to that, when it is killed: a filled disk is
an unlinked file, a taken port an open socket.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # only annotations use these, and Python 3.8 could not evaluate them
    from collections.abc import Callable, Generator

    Json = dict[str, Any]
    Effect = Generator[float, None, None]

FILL_STEP = 64 << 20
LARGEST_FILL = 4 << 30  # a larger disk takes too long to fill, and belongs to others, too
TOP_UP = 0.2  # seconds between two looks for space that somebody freed on a filled disk


class Refused(Exception):
    """What is asked for cannot be done here."""


class NotThere(Exception):
    """What is to be broken is not there, or not of the run that is named."""


def stat_fields(pid: int) -> list[bytes] | None:
    """[state, ppid, …, start time (index 19), …] of a process; None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    fields = text[text.rfind(b")") + 2 :].split()
    return None if fields[0] in b"ZX" else fields


def start_of(pid: int) -> int:
    fields = stat_fields(pid)
    return int(fields[19]) if fields else 0


def read_bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # gone, or another user's
        return b""


def belongs(pid: int, run: str) -> bool:
    """Whether a process is of the run: it carries its tag, or it is its agent, which lives in the run directory."""
    if b"OSTRAIN_RUN=" + run.encode() in read_bytes(f"/proc/{pid}/environ").split(b"\0"):
        return True
    try:
        place = os.readlink(f"/proc/{pid}/cwd")
    except OSError:  # gone, or another user's
        return False
    words = read_bytes(f"/proc/{pid}/cmdline").split(b"\0")
    return f"/runs/{run}/" in place + "/" and any(os.path.basename(word).startswith(b"agent-") for word in words)


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]


def verb_look(request: Json) -> Json:
    """Every live process of the run, and the space where it writes."""
    run: str = request["run"]
    found: list[Json] = []
    for pid in all_pids():
        fields = stat_fields(pid)
        if fields and belongs(pid, run):
            command = read_bytes(f"/proc/{pid}/cmdline").rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace")
            # A follow or a status of somebody who watches is no part of the run.
            if not (" follow " in command or " status " in command):
                found.append({"pid": pid, "start": int(fields[19]), "state": fields[0].decode(), "command": command})
    answer: Json = {"processes": found, "time": time.time()}
    if request.get("root"):
        answer["free"] = free_bytes(os.path.expanduser(request["root"]))
    return answer


def free_bytes(path: str) -> int:
    numbers = os.statvfs(path)
    return numbers.f_bavail * numbers.f_frsize


def checked(request: Json) -> list[tuple[int, int]]:
    """[(pid, start)] of the request, when every one of them is of the run."""
    pids = request["pids"]
    for pid in pids:
        if not belongs(pid, request["run"]):
            raise NotThere("process {} is not one of {}, or has ended".format(pid, request["run"]))
    return [(pid, start_of(pid)) for pid in pids]


def send(processes: list[tuple[int, int]], number: int) -> None:
    for pid, start in processes:
        with contextlib.suppress(ProcessLookupError):
            if start_of(pid) == start:
                os.kill(pid, number)


def verb_kill(request: Json) -> Json:
    processes = checked(request)
    when = time.time()
    send(processes, getattr(signal, request.get("signal", "SIGKILL")))
    return {"time": when, "signalled": [pid for pid, _ in processes]}


def verb_cut_sessions(request: Json) -> Json:
    """Kill this user's sshd processes that serve somebody watching the run, and no others: no shell of a person."""
    run: str = request["run"]
    victims: set[int] = set()
    for pid in all_pids():
        words = read_bytes(f"/proc/{pid}/cmdline").split(b"\0")
        if any(f"/runs/{run}/".encode() in word + b"/" for word in words) and b"follow" in words:
            above = ancestor_sshd(pid)
            if above:
                victims.add(above)
    if not victims:
        raise Refused("no SSH session serves this run here, or its sshd belongs to another user")
    when = time.time()
    send([(pid, start_of(pid)) for pid in victims], signal.SIGKILL)
    return {"time": when, "signalled": sorted(victims)}


def ancestor_sshd(pid: int) -> int:
    """The nearest sshd process of this user above ``pid``; 0 without one."""
    while pid > 1:
        fields = stat_fields(pid)
        if fields is None:
            return 0
        pid = int(fields[1])
        with contextlib.suppress(OSError):
            name = read_bytes(f"/proc/{pid}/comm").strip()
            if name.startswith(b"sshd") and os.stat(f"/proc/{pid}").st_uid == os.getuid():
                return pid
    return 0


# ---------------------------------------------------------------------------------------------------------------------
# What lasts: each is a generator. Up to its first yield it breaks, then it is asked again every so often, and closed.
# ---------------------------------------------------------------------------------------------------------------------


def stopped(request: Json) -> Effect:
    """SIGSTOP; SIGCONT in the end."""
    processes = checked(request)
    try:
        send(processes, signal.SIGSTOP)
        while True:
            yield 0.2
    finally:
        send(processes, signal.SIGCONT)


def slowed(request: Json) -> Effect:
    """Stopped most of the time: ``off`` seconds stopped, ``on`` seconds running, and so on."""
    processes = checked(request)
    try:
        while True:
            send(processes, signal.SIGSTOP)
            yield float(request["off"])
            send(processes, signal.SIGCONT)
            yield float(request["on"])
    finally:
        send(processes, signal.SIGCONT)


def filled(request: Json) -> Effect:
    """No byte left on the file system of ``root``."""
    root = os.path.expanduser(request["root"])
    free = free_bytes(root)
    if free > LARGEST_FILL:
        raise Refused(
            f"{free / 1e9:.0f} GB are free on the file system of {root}: too much to fill, and not ours alone"
        )
    handle, path = tempfile.mkstemp(prefix=".drill-", dir=root)
    os.unlink(path)
    try:
        size = 0
        while True:
            size = fill(handle, size)
            yield TOP_UP
    finally:
        os.close(handle)


def fill(handle: int, size: int) -> int:
    """Take all there is, in smaller and smaller pieces; the size taken so far."""
    step = FILL_STEP
    while step >= 1024:
        try:
            os.posix_fallocate(handle, size, step)
            size += step
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            step //= 4
    return size


def port_taken(request: Json) -> Effect:
    """Somebody else listens on the port. Tries for as long as it takes: its owner may only just be ending."""
    listener = None
    try:
        while listener is None:
            try:
                listener = listen(request["address"], int(request["port"]))
            except OSError:
                yield 0.02
        while True:
            yield 0.5
    finally:
        if listener is not None:
            listener.close()


def listen(address: str, port: int) -> socket.socket:
    kind, _, _, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(kind, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(8)
    except OSError:
        listener.close()
        raise
    return listener


def link_cut(request: Json) -> Effect:
    """The interface that leads to whoever asks is down. Needs sudo for `ip link`."""
    interface = interface_to(request.get("toward") or os.environ.get("SSH_CONNECTION", "").split(" ")[0])
    # Prove that it can be mended before it is broken.
    privileged(["ip", "link", "set", "dev", interface, "up"])
    yield 0.3  # the answer leaves before the link goes
    try:
        privileged(["ip", "link", "set", "dev", interface, "down"])
        while True:
            yield 0.5
    finally:
        privileged(["ip", "link", "set", "dev", interface, "up"])


def interface_to(address: str) -> str:
    if not address:
        raise Refused("nobody knows which interface leads to the submitting machine")
    done = subprocess.run(["ip", "-j", "route", "get", address], capture_output=True, timeout=5)
    routes = json.loads(done.stdout or b"[]") if done.returncode == 0 else []
    if not routes or not routes[0].get("dev") or routes[0]["dev"] == "lo":
        raise Refused("no interface leads to " + address)
    return str(routes[0]["dev"])


def privileged(argv: list[str]) -> None:
    prefix = [] if os.getuid() == 0 else ["sudo", "-n"]
    try:
        done = subprocess.run(prefix + argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=10)
    except OSError as error:
        raise Refused(f"{prefix[0] if prefix else argv[0]} cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        why = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["refused"]
        raise Refused("`{}` is not allowed: {}".format(" ".join(prefix + argv), why[0]))


LASTING: dict[str, Callable[[Json], Effect]] = {
    "stop": stopped,
    "slow": slowed,
    "fill": filled,
    "port": port_taken,
    "link": link_cut,
}


def verb_hold(request: Json) -> Json:
    """Break it and answer; a detached process keeps it so for at most ``seconds``."""
    effect = LASTING[request["effect"]](request)
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)
        os.setsid()
        if os.fork() == 0:
            keep(effect, float(request["seconds"]), writer)
        os._exit(0)
    os.close(writer)
    os.wait()
    text = b""
    while select.select([reader], [], [], 60.0)[0]:
        part = os.read(reader, 1 << 16)
        if not part:
            break
        text += part
    if not text:
        raise Refused("the process that should hold it ended without a word")
    return dict(json.loads(text))


def keep(effect: Effect, seconds: float, writer: int) -> None:
    """The detached process. Never returns."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: told.append(number) if number != signal.SIGHUP else None)
    end, when = time.monotonic() + seconds, time.time()
    try:
        try:
            pause = next(effect)
            answer: Json = {"time": when, "pid": os.getpid(), "start": start_of(os.getpid())}
        except (Refused, NotThere, OSError) as error:
            answer = failure(error)
        with contextlib.suppress(OSError):  # whoever asked may be gone
            os.write(writer, json.dumps(answer).encode())
        os.close(writer)
        while "error" not in answer and not told and time.monotonic() < end:
            time.sleep(min(pause, max(0.0, end - time.monotonic())))
            pause = next(effect)
    finally:
        with contextlib.suppress(Refused, OSError):
            effect.close()
        os._exit(0)


def verb_mend(request: Json) -> Json:
    """End a detached process early and wait until it has undone its work."""
    pid, start = request["pid"], request["start"]
    deadline = time.monotonic() + 15.0
    if start_of(pid) == start:
        os.kill(pid, signal.SIGTERM)
    while start_of(pid) == start:
        if time.monotonic() > deadline:
            raise Refused(f"process {pid} does not end")
        time.sleep(0.02)
    return {"mended": True}


VERBS: dict[str, Callable[[Json], Json]] = {
    "look": verb_look,
    "kill": verb_kill,
    "cut_sessions": verb_cut_sessions,
    "hold": verb_hold,
    "mend": verb_mend,
}


def failure(error: Exception) -> Json:
    """``cannot``: it is the place that does not let it be done."""
    return {"error": str(error), "cannot": isinstance(error, Refused)}


def main(arguments: list[str]) -> int:
    try:
        answer = VERBS[arguments[0]](json.loads(arguments[1]))
    except (Refused, NotThere, OSError, subprocess.SubprocessError) as error:
        answer = failure(error)
    print(json.dumps(answer))
    return 1 if "error" in answer else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

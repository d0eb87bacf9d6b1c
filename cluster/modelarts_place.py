"""What a container of a ModelArts job knows of itself: its number, the others' names and addresses, its secrets.

Standard library only, Python 3.8 or newer: it goes into containers with ``modelarts_start``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import operator
import os
import socket
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # only annotations use these, and Python 3.8 could not evaluate them
    from collections.abc import Callable

    Json = dict[str, Any]


class StartFailed(Exception):
    """The attempt cannot begin here. ``next_step`` is what a person can do."""

    def __init__(self, what: str, why: str = "", next_step: str = "") -> None:
        super().__init__(what)
        self.what, self.why, self.next_step = what, why, next_step


def whole_number(env: dict[str, str], *names: str) -> int | None:
    """The first of the variables that is set. StartFailed when it is no number."""
    for name in names:
        text = env.get(name, "").strip()
        if text:
            if not text.isdigit():
                raise StartFailed(f"{name} is {text!r}, which is no number")
            return int(text)
    return None


def worker_hosts(env: dict[str, str], count: int) -> list[str]:
    """Names of all workers, in the order of their numbers."""
    names = [name.strip() for name in env.get("VC_WORKER_HOSTS", "").split(",") if name.strip()]
    if not names and env.get("MA_VJ_NAME"):
        job = env["MA_VJ_NAME"]
        names = [f"{job}-worker-{index}.{job}" for index in range(count)]
    if not names and count == 1:
        names = ["127.0.0.1"]
    if len(names) != count:
        why = "VC_WORKER_HOSTS is {!r}".format(env.get("VC_WORKER_HOSTS", ""))
        raise StartFailed(f"the platform names {len(names)} workers, the plan has {count} nodes", why)
    return names


def own_number(env: dict[str, str], count: int) -> int:
    """This container's node rank."""
    number = whole_number(env, "VC_TASK_INDEX", "MA_TASK_INDEX")
    if number is None and count == 1:
        number = 0
    if number is None or number >= count:
        raise StartFailed("VC_TASK_INDEX is {!r}, the plan has {} nodes".format(env.get("VC_TASK_INDEX"), count))
    return number


def check_size(env: dict[str, str], nodes: list[Json], number: int) -> None:
    hosts = whole_number(env, "MA_NUM_HOSTS", "VC_WORKER_NUM")
    if hosts is not None and hosts != len(nodes):
        raise StartFailed(f"the platform has {hosts} hosts for the job, the plan {len(nodes)} nodes")
    devices, wanted = whole_number(env, "MA_NUM_GPUS"), len(nodes[number]["ranks"])
    if devices and devices < wanted:
        todo = "name another flavor_id in the inventory, or fewer devices_per_node in the job"
        raise StartFailed(f"the container has {devices} devices, the plan wants {wanted}", "", todo)


def resolve(name: str) -> str | None:
    """An address of a name; None while it has none."""
    try:
        return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return None


def wait_for_all(names: list[str], bound: float, tell: Callable[[str], None]) -> str:
    """Wait until every worker's name resolves: containers come up minutes apart. The master's address."""
    deadline, wait = time.monotonic() + bound, 0.5
    while True:
        missing = [name for name in names if resolve(name) is None]
        master = resolve(names[0]) if not missing else None
        if master is not None:
            return master
        if time.monotonic() >= deadline:
            shown = ", ".join(missing[:4]) + (" …" if len(missing) > 4 else "")
            why = f"no address for {shown} within {bound:g} s"
            raise StartFailed(f"{len(missing)} of {len(names)} workers did not come up", why, "raise `wait`")
        tell(f"waiting for workers: {len(names) - len(missing)} of {len(names)} are up")
        time.sleep(min(wait, max(0.0, deadline - time.monotonic())))
        wait = min(2 * wait, 10.0)


def derived_port(run_id: str, attempt: int) -> int:
    """The same port in every container without asking anybody, another one for the next attempt."""
    digest = hashlib.sha256(f"{run_id}:{attempt}".encode()).digest()
    return 20000 + int.from_bytes(digest[:4], "big") % 12000


def unseal(code: str, env: dict[str, str]) -> dict[str, str]:
    """The job's secrets, of the halves that ``cluster.sealed`` made. The one in the code folder is deleted."""
    pieces: list[str] = []
    while f"OSTRAIN_SEALED_{len(pieces)}" in env:
        pieces.append(env[f"OSTRAIN_SEALED_{len(pieces)}"])
    if not pieces:
        return {}
    path = os.path.join(code, "sealed-" + env.get("OSTRAIN_ATTEMPT", "1"))
    try:
        with open(path, "rb") as file:
            pad = file.read()
        os.unlink(path)
        other = base64.b64decode("".join(pieces), validate=True)
        if len(pad) != len(other):
            raise ValueError("the halves differ in length")
        values = json.loads(bytes(map(operator.xor, pad, other)).decode())
        return {str(name): str(value) for name, value in values.items()}
    except (OSError, ValueError, AttributeError):
        # Not the text of the error: it could hold what is kept.
        why = "the half in the code folder is missing, or belongs to another attempt"
        raise StartFailed("the job's secrets cannot be put together", why, "ostrain resume RUN") from None

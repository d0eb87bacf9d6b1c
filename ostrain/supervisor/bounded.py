"""Calls to many nodes with one bound for all: who has not answered by then counts as not answering."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from cluster.backend import NodeError

T = TypeVar("T")
WIDTH = 32


def each(names: Iterable[str], call: Callable[[str], T], bound: float) -> dict[str, T | NodeError]:
    """``call(name)`` for every name, at most 32 at a time: result or NodeError by name, within ``bound`` seconds.

    Other exceptions are mistakes of ours and are raised. Threads that hang in a call are left behind: they are daemons.
    """
    todo: queue.SimpleQueue[str] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[str, T | BaseException]] = queue.SimpleQueue()
    wanted = list(names)
    for name in wanted:
        todo.put(name)

    def work() -> None:
        while True:
            try:
                name = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((name, call(name)))
            except BaseException as error:  # handed to the caller, below
                done.put((name, error))

    for _ in range(min(WIDTH, len(wanted))):
        threading.Thread(target=work, name="each", daemon=True).start()
    return _collect(wanted, done, bound)


def _collect(
    wanted: list[str], done: queue.SimpleQueue[tuple[str, T | BaseException]], bound: float
) -> dict[str, T | NodeError]:
    found: dict[str, T | NodeError] = {}
    deadline = time.monotonic() + bound
    while len(found) < len(wanted):
        try:
            name, result = done.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        if isinstance(result, BaseException) and not isinstance(result, NodeError):
            raise result
        found[name] = result
    for name in wanted:
        found.setdefault(name, NodeError("unreachable", f"no answer within {bound:g} s", node=name))
    return {name: found[name] for name in wanted}

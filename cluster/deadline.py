"""A fan-out that ends on time: for questions whose answer is worthless when it comes late."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from cluster.backend import NodeError

Item = TypeVar("Item")
Value = TypeVar("Value")


def fan_out_within(
    items: dict[str, Item], call: Callable[[Item], Value], *, seconds: float
) -> dict[str, Value | NodeError]:
    """``call`` for every item at once: result or NodeError by name, in order, after at most ``seconds``.

    Who has not answered by then is unreachable; its thread ends when its own call does, and keeps no process alive.
    Other exceptions are mistakes of ours: they are raised.
    """
    futures = {name: _start(call, item) for name, item in items.items()}
    end = time.monotonic() + seconds
    wait(futures.values(), timeout=max(0.0, end - time.monotonic()))
    return {name: _answer(name, future, seconds) for name, future in futures.items()}


def _start(call: Callable[[Item], Value], item: Item) -> Future[Value]:
    future: Future[Value] = Future()

    def work() -> None:
        try:
            future.set_result(call(item))
        except BaseException as error:  # handed to whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def _answer(name: str, future: Future[Any], seconds: float) -> Any:
    if not future.done():
        return NodeError("unreachable", f"no answer within {seconds:g} s", node=name)
    try:
        return future.result()
    except NodeError as error:
        return error

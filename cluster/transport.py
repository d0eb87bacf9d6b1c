"""Transports: how an argument list reaches a node, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Protocol, TypeVar

from cluster.backend import NodeError

FAN_OUT = 32
BLOCK = 1 << 18

Input = bytes | IO[bytes]
Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Result:
    """How a command on a node ended. ``returncode`` is negative for a signal where the transport can tell."""

    returncode: int
    stdout: bytes
    stderr: bytes


class Stream(Protocol):
    """A running command: lines of its standard output as they come."""

    def send(self, data: bytes) -> None:
        """Write to the command's standard input."""
        ...

    def lines(self, silence: float) -> Iterator[bytes]:
        """Lines without their ends, until the command ends. NodeError (unreachable) when the connection breaks or
        nothing comes for ``silence`` seconds."""
        ...

    def close(self) -> None:
        """End the command's input and forget it; ``lines`` ends. May be called from any thread, more than once."""
        ...


class Transport(Protocol):
    """One node. Commands are argument lists: no shell interprets them, whatever they hold."""

    node: str

    def run(self, argv: Sequence[str], input: Input = b"", *, timeout: float) -> Result:
        """Run a command to its end. NodeError when the node cannot be reached or the time is over."""
        ...

    def stream(self, argv: Sequence[str], input: bytes) -> Stream:
        """Start a command, write ``input`` and leave its standard input open."""
        ...

    def close(self) -> None:
        """Close the connection; it opens again when needed."""
        ...


def blocks(input: Input) -> Iterator[bytes]:
    """What to write, in pieces."""
    if isinstance(input, bytes):
        for start in range(0, len(input), BLOCK):
            yield input[start : start + BLOCK]
    else:
        yield from iter(lambda: input.read(BLOCK), b"")


class LineSplitter:
    """Cuts a stream of bytes into lines."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        if b"\n" not in data:
            self._rest += data
            return []
        *lines, rest = (bytes(self._rest) + data).split(b"\n")
        self._rest = bytearray(rest)
        return lines


def fan_out(
    items: dict[str, Item], call: Callable[[Item], Value], *, width: int = FAN_OUT
) -> dict[str, Value | NodeError]:
    """``call`` for every item at once, at most ``width`` at a time: result **or** NodeError by name, in order.

    Other exceptions are mistakes of ours: they are raised, after every call has ended.
    """

    def one(item: Item) -> Value | NodeError:
        try:
            return call(item)
        except NodeError as error:
            return error

    if len(items) == 1:  # no threads for the commonest case: it must be quick
        return {name: one(item) for name, item in items.items()}
    with ThreadPoolExecutor(max_workers=max(1, min(width, len(items)))) as pool:
        futures = {name: pool.submit(one, item) for name, item in items.items()}
    return {name: future.result() for name, future in futures.items()}

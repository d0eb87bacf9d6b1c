"""The local transport: this machine as a node."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence

from cluster.backend import NodeError
from cluster.transport import Input, LineSplitter, Result, blocks


def clean_environment() -> dict[str, str]:
    """Our environment without what belongs to a run: started from inside one, we must not pass its tag on."""
    return {name: value for name, value in os.environ.items() if not name.startswith("OSTRAIN_")}


def _spawn(node: str, argv: Sequence[str]) -> subprocess.Popen[bytes]:
    try:
        # A session of its own: Ctrl-C at the client's terminal must not reach agents.
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=clean_environment(),
            cwd="/",
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise NodeError(
            "python_missing", f"no program {argv[0]}", node=node, why=str(error), next_step="name another `python`"
        ) from error
    except PermissionError as error:
        raise NodeError("permission", f"may not execute {argv[0]}", node=node, why=str(error)) from error


class LocalTransport:
    """Commands as child processes."""

    def __init__(self, node: str) -> None:
        self.node = node

    def run(self, argv: Sequence[str], input: Input = b"", *, timeout: float) -> Result:
        process = _spawn(self.node, argv)
        with process:
            writer = threading.Thread(target=_feed, args=(process, input), daemon=True)
            writer.start()
            chunks: dict[str, bytes] = {}
            readers = [
                threading.Thread(target=lambda n=name, p=pipe: chunks.__setitem__(n, p.read()), daemon=True)
                for name, pipe in (("out", process.stdout), ("err", process.stderr))
            ]
            for reader in readers:
                reader.start()
            deadline = time.monotonic() + timeout
            for thread in (*readers, writer):
                thread.join(max(0.0, deadline - time.monotonic()))
            try:
                process.wait(max(0.0, deadline - time.monotonic()) + 0.1)
            except subprocess.TimeoutExpired:
                process.kill()
                raise NodeError(
                    "unreachable", f"no answer within {timeout:g} s", node=self.node, why=f"{argv[0]} still runs"
                ) from None
        return Result(process.returncode, chunks.get("out", b""), chunks.get("err", b""))

    def stream(self, argv: Sequence[str], input: bytes) -> LocalStream:
        return LocalStream(self.node, argv, input)

    def close(self) -> None:
        """There is no connection."""


def _feed(process: subprocess.Popen[bytes], input: Input) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it ended early; its exit code tells
        for block in blocks(input):
            process.stdin.write(block)
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


class LocalStream:
    """A child process whose output is read line by line."""

    def __init__(self, node: str, argv: Sequence[str], input: bytes) -> None:
        self.node = node
        self._process = _spawn(node, argv)
        # Nobody reads the messages of a stream: give them no pipe to fill.
        threading.Thread(target=self._drain, daemon=True).start()
        self.send(input)

    def _drain(self) -> None:
        assert self._process.stderr is not None
        with contextlib.suppress(ValueError):  # closed meanwhile
            for _ in self._process.stderr:
                continue

    def send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            raise NodeError("unreachable", "the stream ended", node=self.node, why=str(error)) from error

    def lines(self, silence: float) -> Iterator[bytes]:
        """``silence`` is not needed here: a pipe ends when its writer does."""
        assert self._process.stdout is not None
        splitter = LineSplitter()
        with self._process.stdout as output:
            while data := os.read(output.fileno(), 1 << 16):
                yield from splitter.feed(data)

    def close(self) -> None:
        process = self._process
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(2.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()

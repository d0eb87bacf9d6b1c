"""Fan-out and the local transport."""

from __future__ import annotations

import io
import sys
import threading
import time

import pytest

from cluster.backend import NodeError
from cluster.local import LocalTransport
from cluster.transport import LineSplitter, fan_out


def test_fan_out_gives_a_result_or_an_error_for_each() -> None:
    def call(number: int) -> int:
        if number == 2:
            raise NodeError("unreachable", "gone", node="c")
        return number * 10

    answers = fan_out({"a": 0, "b": 1, "c": 2}, call)
    assert list(answers) == ["a", "b", "c"] and (answers["a"], answers["b"]) == (0, 10)
    assert isinstance(answers["c"], NodeError) and answers["c"].kind == "unreachable"


def test_fan_out_is_parallel_and_bounded() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def call(_: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        with lock:
            running -= 1

    fan_out({str(number): number for number in range(12)}, call, width=4)
    assert most == 4


def test_fan_out_does_not_hide_mistakes() -> None:
    def call(number: int) -> float:
        return 1 / number

    with pytest.raises(ZeroDivisionError):
        fan_out({"a": 1, "b": 0}, call)


def test_lines_of_any_cut() -> None:
    data = b"one\ntwo\n\nthree"
    for cut in range(len(data) + 1):
        splitter = LineSplitter()
        assert splitter.feed(data[:cut]) + splitter.feed(data[cut:]) == [b"one", b"two", b""]


def test_local_run_carries_bytes_and_codes() -> None:
    transport = LocalTransport("n")
    data = bytes(range(256)) * 4000
    assert transport.run(["cat"], data, timeout=10).stdout == data
    assert transport.run(["cat"], io.BytesIO(data), timeout=10).stdout == data
    result = transport.run([sys.executable, "-c", "import sys; print('no', file=sys.stderr); sys.exit(3)"], timeout=10)
    assert (result.returncode, result.stderr) == (3, b"no\n")


def test_local_run_is_bounded() -> None:
    began = time.monotonic()
    with pytest.raises(NodeError, match=r"no answer within 0\.3 s"):
        LocalTransport("n").run(["sleep", "30"], timeout=0.3)
    assert time.monotonic() - began < 5


def test_a_command_that_ignores_its_input() -> None:
    assert LocalTransport("n").run(["true"], b"x" * (1 << 20), timeout=10).returncode == 0

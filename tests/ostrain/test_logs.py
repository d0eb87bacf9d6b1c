"""Whole lines out of chunks, filters, and each line exactly once across killed followers."""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.backend import Chunk
from ostrain.cursor import OutputCursor
from ostrain.logs import LineAssembler, LineFilter, describe, line_time, printable

PATH = "logs/attempt-2/worker_3.log"


def chunk(offset: int, data: bytes, path: str = PATH, node: str = "n1") -> Chunk:
    return Chunk(node, path, offset, offset + len(data), data.decode("utf-8", "surrogateescape"))


@given(
    st.lists(st.binary(max_size=12).filter(lambda b: b"\n" not in b and not b.endswith(b"\r")), max_size=8),
    st.randoms(),
)
def test_any_cutting_gives_the_same_lines(lines: list[bytes], rng: random.Random) -> None:
    data = b"".join(line + b"\n" for line in lines)
    cuts = sorted({0, len(data), *(rng.randint(0, len(data)) for _ in range(5))})
    assembler = LineAssembler()
    got = []
    for start, end in itertools.pairwise(cuts):
        # A UTF-8 sequence may be cut anywhere: surrogate escapes carry its bytes over.
        got += list(assembler.feed(chunk(start, data[start:end])))
    got += list(assembler.flush())
    assert [line.text.encode("utf-8", "surrogateescape") for line in got] == lines
    assert [line.end for line in got] == [sum(len(one) + 1 for one in lines[: i + 1]) for i in range(len(lines))]


def test_repeats_are_dropped_and_gaps_refused() -> None:
    assembler = LineAssembler()
    assert [line.text for line in assembler.feed(chunk(0, b"one\ntw"))] == ["one"]
    assert [line.text for line in assembler.feed(chunk(4, b"two\nthree"))] == ["two"]
    with pytest.raises(AssertionError, match="jumps"):
        list(assembler.feed(chunk(100, b"x")))
    assert [line.text for line in assembler.flush()] == ["three"]


def test_node_rank_source_and_attempt_come_from_the_path() -> None:
    assert describe("logs/attempt-2/worker_13.log") == (2, "worker", 13)
    assert describe("logs/attempt-1/launcher.log") == (1, "launcher", None)
    [line] = LineAssembler().feed(chunk(0, b"x\n"))
    assert line.prefix == "n1/3"
    [line] = LineAssembler().feed(chunk(0, b"x\n", path="logs/attempt-1/scheduler.log"))
    assert line.prefix == "n1/scheduler"


def test_times_of_both_kinds_of_lines() -> None:
    assert line_time("2026-01-02T03:04:05.500Z INFO step 1") == 1767323045.5
    local = time.mktime((2026, 11, 22, 9, 26, 19, 0, 0, -1))
    assert line_time("[WARNING] ME(5972:1404,MainProcess):2026-11-22-09:26:19.748.000 [a.py:275] x") == local + 0.748
    assert line_time("Traceback (most recent call last):") is None


def test_since_lets_undated_lines_follow_their_dated_one() -> None:
    text = b"2026-01-02T03:04:05.000Z old\n  detail of old\n2026-01-02T03:05:00.000Z new\n  detail of new\n"
    chosen = LineFilter(since=1767323050.0)
    assert [line.text for line in LineAssembler().feed(chunk(0, text)) if chosen(line)] == [
        "2026-01-02T03:05:00.000Z new",
        "  detail of new",
    ]


def test_filters_and_their_patterns() -> None:
    lines = list(LineAssembler().feed(chunk(0, b"loss 1\nother\n")))
    assert [line.text for line in lines if LineFilter(grep=re.compile("loss"))(line)] == ["loss 1"]
    assert not [line for line in lines if LineFilter(nodes=frozenset({"n0"}))(line)]
    assert LineFilter().patterns() == ("logs/attempt-*/worker_*.log",)
    some = LineFilter(ranks=frozenset({3, 1}), sources=frozenset({"worker", "launcher"}), attempt=2)
    assert some.patterns() == (
        "logs/attempt-2/worker_1.log",
        "logs/attempt-2/worker_3.log",
        "logs/attempt-2/launcher.log",
    )
    assert LineFilter(ranks=frozenset({1})).key() != LineFilter(ranks=frozenset({2})).key()


def test_a_line_cannot_take_over_the_terminal() -> None:
    assert printable("\x1b]0;owned\x07 ok\tü", styled=True) == "\\x1b]0;owned\\x07 ok\tü"


def test_cursor_goes_on_where_the_last_follower_stopped(tmp_path: Path) -> None:
    out = os.open(tmp_path / "out", os.O_CREAT | os.O_WRONLY)
    cursor = OutputCursor(tmp_path / "c", "all", out)
    assert cursor.restore() == b""
    cursor.write(b"one\n", {"n": {"p": 4}})
    cursor.close()
    again = OutputCursor(tmp_path / "c", "all", out)
    assert again.restore() == b""
    assert again.offsets == {"n": {"p": 4}}
    again.finish()
    again.close()
    fresh = OutputCursor(tmp_path / "c", "all", out)
    fresh.restore()
    assert fresh.offsets == {}
    other = OutputCursor(tmp_path / "c", "all", out)
    assert not other.held, "a live follower keeps its cursor to itself"
    fresh.close()


@pytest.mark.parametrize("written", [0, 1, 3, 8])
def test_a_batch_cut_off_while_written_is_completed_not_repeated(tmp_path: Path, written: int) -> None:
    batch = b"one\ntwo\n"
    pid = os.fork()
    if pid == 0:
        out = os.open(tmp_path / "a", os.O_CREAT | os.O_WRONLY)
        cursor = OutputCursor(tmp_path / "c", "all", out)
        real = os.write

        def dying(fd: int, data: bytes) -> int:
            real(fd, bytes(data)[:written])
            os.kill(os.getpid(), signal.SIGKILL)
            return 0

        os.write = dying  # type: ignore[assignment]
        cursor.write(batch, {"n": {"p": 8}})
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    out = os.open(tmp_path / "b", os.O_CREAT | os.O_WRONLY)
    cursor = OutputCursor(tmp_path / "c", "all", out)
    cursor.write(cursor.restore(), cursor.offsets)
    assert (tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes() == batch
    assert cursor.offsets == {"n": {"p": 8}}


FOLLOWER = """
import sys
from pathlib import Path
from ostrain.cursor import OutputCursor
cursor = OutputCursor(Path(sys.argv[1]), "all")
cursor.write(cursor.restore(), cursor.offsets)
start = cursor.offsets.get("n", {}).get("p", 0)
for number in range(start, 3000):
    cursor.write(b"line %d\\n" % number, {"n": {"p": number + 1}})
"""


def test_killed_followers_together_show_every_line_once(tmp_path: Path) -> None:
    """Followers killed at random moments, each with an output file of its own."""
    rng = random.Random(7)
    outputs = []
    for attempt in range(40):
        path = tmp_path / f"out-{attempt:02d}"
        outputs.append(path)
        with path.open("wb") as out:
            follower = subprocess.Popen([sys.executable, "-c", FOLLOWER, str(tmp_path / "c")], stdout=out)
            try:
                follower.wait(timeout=rng.uniform(0.06, 0.25))
                break
            except subprocess.TimeoutExpired:
                follower.kill()
                follower.wait(timeout=10)
    lines = b"".join(path.read_bytes() for path in outputs).splitlines()
    assert lines == [b"line %d" % number for number in range(len(lines))]
    assert len(lines) > 100

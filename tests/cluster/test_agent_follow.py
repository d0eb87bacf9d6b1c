"""Following files: every byte exactly once, whatever breaks in between."""

from __future__ import annotations

import json
import random
import threading
import time
from pathlib import Path

import pytest

from cluster import agent
from cluster.backend import Chunk, FollowLost, NodeError, NodeNews
from tests.cluster.conftest import LocalSite
from tests.cluster.toys import wait_ready, wait_until


def as_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def random_bytes(rng: random.Random, size: int) -> bytes:
    """Lines, long characters, bytes that are no UTF-8."""
    words = ["a", "\n", "é", "漢字", "😀", "step 1 loss 0.5\n"]
    parts = [as_bytes(rng.choice(words)) if rng.random() < 0.8 else rng.randbytes(2) for _ in range(size)]
    return b"".join(parts)


def append_in_pieces(path: Path, data: bytes, rng: random.Random) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    start = 0
    while start < len(data):
        end = min(len(data), start + rng.randint(1, 900))
        with open(path, "ab") as file:
            file.write(data[start:end])
        start = end
        time.sleep(rng.random() * 0.002)


@pytest.mark.parametrize("seed", range(3))
def test_every_byte_once_under_growth_and_reconnects(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    names = ["logs/attempt-1/worker_0.log", "logs/attempt-2/worker_0.log", "metrics/rank-0.jsonl"]
    contents = {name: random_bytes(rng, 20_000) for name in names}
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    writers = [
        threading.Thread(target=append_in_pieces, args=(run_dir / name, data, random.Random(seed)))
        for name, data in contents.items()
    ]
    for writer in writers:
        writer.start()
    got: dict[str, bytes] = dict.fromkeys(names, b"")
    cursors: dict[str, int] = {}
    last = False
    while not last:
        last = not any(writer.is_alive() for writer in writers)
        request = {"cursors": cursors, "patterns": ["logs/attempt-*/*.log", "metrics/*.jsonl"]}
        follower = agent.Follower(str(run_dir), request)  # a new connection
        for number, frame in enumerate(follower.pass_over(last)):
            assert frame["offset"] == cursors.get(frame["path"], 0), "a gap or a repetition"
            got[frame["path"]] += as_bytes(json.loads(json.dumps(frame))["text"])
            cursors[frame["path"]] = frame["end"]
            if not last and number == rng.randint(0, 3):
                break  # the connection ends in the middle of a pass
    assert got == contents


def test_characters_are_not_torn(tmp_path: Path) -> None:
    data = "漢字😀".encode()
    for cut in range(len(data) + 1):
        whole = agent.whole_characters(data[:cut])
        assert whole.decode() == data[:cut].decode("utf-8", "ignore")
    assert agent.whole_characters(b"\xff\xfe broken") == b"\xff\xfe broken"
    assert agent.whole_characters(b"abc\xe6") == b"abc", "may become a character"


def test_an_unfinished_character_arrives_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/a.log").write_bytes(b"abc\xe6")
    follower = agent.Follower(str(tmp_path), {"patterns": ["logs/*.log"]})
    assert [frame["text"] for frame in follower.pass_over()] == ["abc"]
    assert [as_bytes(frame["text"]) for frame in follower.pass_over(last=True)] == [b"\xe6"]


def test_patterns_stay_in_the_run_directory(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "run").mkdir()
    patterns = ["../secret", str(tmp_path / "secret"), "a/../../secret"]
    assert agent.Follower(str(tmp_path / "run"), {"patterns": patterns}).paths() == []


def test_follow_to_the_end_of_a_run(site: LocalSite) -> None:
    worker = (
        "import time\n"
        "for n in range(20):\n"
        "    print('line', n, flush=True)\n"
        "    time.sleep(0.03)\n"
        "print('no line end', end='')"
    )
    run = site.start(worker, ranks=(0, 1))
    texts: dict[str, str] = {}
    states = []
    for item in site.backend.follow(run, {}, ("logs/attempt-*/worker_*.log", "events.jsonl")):
        if isinstance(item, Chunk):
            assert (item.offset, item.end) == (len(texts.get(item.path, "")), item.offset + len(item.text))
            texts[item.path] = texts.get(item.path, "") + item.text
        elif isinstance(item, NodeNews):
            states.append(item.status["state"])
    expected = "".join(f"line {number}\n" for number in range(20)) + "no line end"
    assert texts["logs/attempt-1/worker_0.log"] == texts["logs/attempt-1/worker_1.log"] == expected
    assert states[-1] == "SUCCEEDED" and json.loads(texts["events.jsonl"].splitlines()[-1])["event"] == "ended"


def test_follow_once_returns_what_there_is(site: LocalSite) -> None:
    run = site.start()
    wait_ready(site.backend, run)
    began = time.monotonic()
    items = list(site.backend.follow(run, {}, ("logs/attempt-1/worker_0.log",), until_final=False))
    assert time.monotonic() - began < 5
    assert [item.text for item in items if isinstance(item, Chunk)] == ["ready\n"]
    again = site.backend.follow(
        run, {"node-0": {"logs/attempt-1/worker_0.log": 3}}, ("logs/attempt-1/*",), until_final=False
    )
    assert next(item.text for item in again if isinstance(item, Chunk) and "worker" in item.path) == "dy\n"


def test_a_follower_that_goes_away_leaves_no_process(site: LocalSite) -> None:
    run = site.start()
    wait_ready(site.backend, run)
    stream = site.backend.follow(run, {}, ("logs/*/*",))
    assert next(stream)

    def followers() -> list[str]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if b"follow" in words and str(site.root).encode() in b" ".join(words):
                found.append(path.parent.name)
        return found

    assert len(followers()) == 1
    stream.close()  # type: ignore[attr-defined]
    wait_until(lambda: not followers(), 5)


def test_following_a_run_that_is_not_there(site: LocalSite) -> None:
    run = site.run()
    (item,) = site.backend.follow(run, {}, ("*",))
    assert isinstance(item, FollowLost) and item.final
    assert isinstance(item.error, NodeError) and item.error.kind == "no_run"


def test_an_idle_follow_costs_little(site: LocalSite) -> None:
    run = site.start()
    wait_ready(site.backend, run)
    stream = site.backend.client(run.plan.nodes[0]).stream(
        "follow", str(site.run_dir(run)), request={"patterns": ["logs/*/*"], "cursors": {}}, timeout=10
    )
    lines = stream.lines(10.0)
    next(lines)
    pid = stream._process.pid  # type: ignore[attr-defined]
    try:
        before = cpu_seconds(pid)
        ticks = 0
        while ticks < 1:
            ticks += "tick" in json.loads(next(lines))
        assert cpu_seconds(pid) - before < 0.3, "of about two seconds"
    finally:
        stream.close()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100

"""Following a run through its attempts: every byte once, whatever nodes come and go."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from cluster.backend import Chunk, FollowItem, FollowLost, NodeError, NodeNews, RunRef
from ostrain import attempts
from ostrain.attempts import follow_attempts
from ostrain.plan import LaunchPlan
from ostrain.states import State
from ostrain.store import Run, Store
from tests.ostrain.test_store import plan

PATTERNS = ("logs/*",)


@dataclass
class FakeNode:
    """Files and status of a node; ``gone``: it does not answer."""

    files: dict[str, bytes] = field(default_factory=dict)
    attempt: int = 1
    state: str = "RUNNING"
    gone: bool = False

    def write(self, text: bytes) -> None:
        path = f"logs/attempt-{self.attempt}/worker_0.log"
        self.files[path] = self.files.get(path, b"") + text


class FakeBackend:
    """Follows fake nodes as the real one does: files first, then the status; ends with the last final one."""

    def __init__(self, nodes: dict[str, FakeNode]) -> None:
        self.nodes = nodes

    def follow(
        self, run: RunRef, cursors: Mapping[str, Mapping[str, int]], patterns: tuple[str, ...], *,
        until_final: bool = True,
    ) -> Iterator[FollowItem]:  # fmt: skip
        assert patterns == PATTERNS
        known = {name: dict(paths) for name, paths in cursors.items()}
        going = [node.name for node in run.plan.nodes]
        while going:
            for name in list(going):
                there = self.nodes[name]
                if there.gone:
                    error = NodeError("unreachable", "no answer", node=name)
                    yield FollowLost(name, error, not until_final)
                else:
                    status = {"attempt": there.attempt, "state": there.state}
                    yield from self._chunks(name, known.setdefault(name, {}))
                    yield NodeNews(name, status)
                    if status["state"] == "RUNNING" and until_final:
                        continue
                if not there.gone or not until_final:
                    going.remove(name)
            time.sleep(0.01)

    def _chunks(self, name: str, known: dict[str, int]) -> Iterator[Chunk]:
        for path, data in sorted(self.nodes[name].files.items()):
            start = known.get(path, 0)
            if start < len(data):
                known[path] = len(data)
                yield Chunk(name, path, start, len(data), data[start:].decode())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("LOOK", 0.01), ("STORE", 0.02), ("ABANDONED", 0.3), ("LATE", 0.3)):
        monkeypatch.setattr(attempts, name, seconds)


class Story:
    """A supervised run whose store and nodes a test moves on, beside somebody who follows it."""

    def __init__(self, folder: Path, launch: LaunchPlan) -> None:
        self.path = folder / "runs.db"
        self.store = Store(self.path)
        made = self.store.add(launch, "", "")
        self.run: Run = self.store.release(made.run_id, State.RUNNING, "running")
        names = [node.name for node in (*launch.nodes, *launch.spares)]
        self.nodes = {name: FakeNode() for name in names}
        self.seen: list[FollowItem] = []
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def start(self, supervised: bool = True) -> None:
        if supervised:
            self.store.supervise(self.run.run_id)
        self.thread.start()

    def _follow(self) -> None:
        try:
            store = Store(self.path)
            backend: Any = FakeBackend(self.nodes)
            self.seen.extend(follow_attempts(store, backend, self.run, {}, PATTERNS))
            store.close()
        except BaseException as error:
            self.error = error

    def next_attempt(self, launch: LaunchPlan | None = None) -> None:
        self.run = self.store.claim(self.run, self.run.attempt + 1)
        if launch is not None:
            self.run = self.store.replan(self.run.run_id, launch)
        time.sleep(0.1)
        for node in self.run.plan.nodes:
            self.nodes[node.name].attempt, self.nodes[node.name].state = self.run.attempt, "RUNNING"
        self.store.release(self.run.run_id, State.RUNNING, "running")

    def succeed(self) -> None:
        for node in self.run.plan.nodes:
            self.nodes[node.name].state = "SUCCEEDED"
        self.store.record(self.store.get(self.run.run_id), State.SUCCEEDED, "done", True, {})

    def end(self) -> dict[tuple[str, str], str]:
        """What was followed, by node and file."""
        self.thread.join(10.0)
        assert not self.thread.is_alive() and self.error is None, self.error
        found: dict[tuple[str, str], str] = {}
        for item in self.seen:
            if isinstance(item, Chunk):
                before = found.get((item.node, item.path), "")
                assert item.offset == len(before), "a gap, or a byte twice"
                found[item.node, item.path] = before + item.text
        self.store.close()
        return found

    def written(self) -> dict[tuple[str, str], str]:
        return {(name, path): data.decode() for name, node in self.nodes.items() for path, data in node.files.items()}


def test_a_restart_is_followed_from_the_first_line_to_the_last(tmp_path: Path) -> None:
    story = Story(tmp_path, plan(nodes=2))
    one, two = story.nodes.values()
    one.write(b"a\n")
    story.start()
    two.write(b"b\nhalf a li")
    time.sleep(0.1)
    one.write(b"last words\n")
    one.state = two.state = "FAILED"
    time.sleep(0.1)
    story.next_attempt()
    one.write(b"again\n")
    two.write(b"again, too\n")
    time.sleep(0.1)
    story.succeed()
    assert story.end() == story.written()


def test_a_node_that_was_given_up_tells_the_rest_once_it_is_back(tmp_path: Path) -> None:
    names = [node.name for node in plan(nodes=3).nodes]
    whole = plan(nodes=3)
    launch = replace(whole, nodes=whole.nodes[:2], spares=whole.nodes[2:])
    story = Story(tmp_path, launch)
    for node in story.nodes.values():
        node.write(b"begin\n")
    story.nodes[names[2]].files.clear()
    story.start()
    time.sleep(0.1)
    story.nodes[names[1]].gone = True
    story.nodes[names[1]].write(b"nobody hears this now\n")
    story.nodes[names[0]].state = "FAILED"
    time.sleep(0.1)
    story.next_attempt(replace(whole, nodes=(whole.nodes[0], whole.nodes[2]), spares=(whole.nodes[1],)))
    story.nodes[names[2]].write(b"in its place\n")
    time.sleep(0.5)
    story.nodes[names[1]].gone = False
    story.nodes[names[1]].state = "FAILED"
    story.succeed()
    assert story.end() == story.written()


def test_it_ends_when_nobody_will_start_the_run_again(tmp_path: Path) -> None:
    story = Story(tmp_path, plan(nodes=1))
    (node,) = story.nodes.values()
    node.write(b"a\n")
    story.start(supervised=False)
    time.sleep(0.1)
    node.state = "FAILED"
    begun = time.monotonic()
    assert story.end() == story.written()
    assert 0.2 < time.monotonic() - begun < 5

"""One process on a node answers a submit's verbs; where it cannot, the ordinary way is taken and tells why."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cluster.backend import NodeError, RunRef
from cluster.client import AgentClient
from cluster.local import LocalStream, LocalTransport
from cluster.node_backend import NodeBackend
from cluster.transport import Input, LineSplitter, Result
from ostrain.plan import NodeAccess
from tests.cluster.toys import good, launch, make_plan, node_plan, toy_bundle, wait_ready, wait_until


class Pipe(LocalStream):
    """As a channel over SSH: it can be read on after a line was taken."""

    def lines(self, silence: float) -> Iterator[bytes]:
        assert self._process.stdout is not None
        splitter = LineSplitter()
        while data := os.read(self._process.stdout.fileno(), 1 << 16):
            yield from splitter.feed(data)


class Piped(LocalTransport):
    """This machine, with sessions, and a list of what was started."""

    sessions = True

    def __init__(self, node: str) -> None:
        super().__init__(node)
        self.ran: list[str] = []
        self.streams: list[Pipe] = []

    def run(self, argv: Sequence[str], input: Input = b"", *, timeout: float) -> Result:
        self.ran.append(str(argv[2]))
        return super().run(argv, input, timeout=timeout)

    def stream(self, argv: Sequence[str], input: bytes) -> LocalStream:
        self.streams.append(Pipe(self.node, argv, input))
        return self.streams[-1]


class Place:
    def __init__(self, folder: Path, python: str = sys.executable) -> None:
        self.folder, self.transport = folder, Piped("node-0")
        self.client = AgentClient(self.transport, python, str(folder / "root"))
        self.backend = NodeBackend("local", lambda node: self.client)
        access = NodeAccess("h", root=str(folder / "root"), python=sys.executable)
        self.run = RunRef("run-1", make_plan("local", [node_plan("node-0", access)]))

    def launch(self, attempt: int = 1) -> None:
        launch(self.backend, self.run, toy_bundle(self.folder), attempt)

    def end(self) -> None:
        for answer in self.backend.stop(self.run, grace=0.2).values():
            assert not isinstance(answer, NodeError) or answer.kind == "no_run"
        self.backend.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.end()


def test_a_submit_is_one_process_and_it_ends_with_the_client(place: Place) -> None:
    place.launch()
    assert good(place.backend.poll(place.run))["node-0"]["state"] == "RUNNING"
    assert (len(place.transport.streams), [verb for verb in place.transport.ran if verb != "probe"]) == (1, [])
    wait_ready(place.backend, place.run)
    process = place.transport.streams[0]._process
    place.client.close()
    wait_until(lambda: process.poll() is not None, 5)
    assert good(place.backend.poll(place.run))["node-0"]["state"] == "RUNNING", "the run does not depend on it"


def test_errors_of_verbs_are_the_same_and_the_session_lives_on(place: Place) -> None:
    answer = place.backend.poll(place.run)["node-0"]
    assert isinstance(answer, NodeError) and (answer.kind, answer.exit_code) == ("no_run", 3)
    place.launch()
    again = place.backend.start(place.run, 2, {})["node-0"]
    assert isinstance(again, NodeError) and "already has a live agent" in again.what
    assert len(place.transport.streams) == 1


def test_a_session_that_died_is_opened_again_or_told(place: Place) -> None:
    place.launch()
    place.transport.streams[0]._process.kill()
    place.transport.streams[0]._process.wait()
    answers = [place.backend.poll(place.run)["node-0"] for _ in range(2)]
    assert isinstance(answers[0], NodeError) or answers[0]["state"] == "RUNNING"
    assert answers[1]["state"] == "RUNNING"  # type: ignore[index]


def test_an_agent_file_that_was_tidied_up_comes_back(place: Place) -> None:
    good(place.backend.stage(place.run, toy_bundle(place.folder)))
    for file in (place.folder / "root" / "bin").glob("*.py"):
        file.unlink()
    good(place.backend.start(place.run, 1, {}))
    assert list((place.folder / "root" / "bin").glob("agent-*.py"))
    wait_ready(place.backend, place.run)


def test_input_too_large_for_it_takes_the_ordinary_way(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.client.LARGEST", 100)
    place.launch()
    assert {"unpack", "stage"} <= set(place.transport.ran)


def test_a_python_that_is_none_and_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "fake").write_text("#!/bin/sh\nexit 127\n")
    (tmp_path / "fake").chmod(0o755)
    broken = Place(tmp_path, str(tmp_path / "fake"))
    answer = broken.backend.poll(broken.run)["node-0"]
    assert isinstance(answer, NodeError) and answer.kind == "python_missing"
    (tmp_path / "root").write_text("a file")
    blocked = Place(tmp_path)
    answer = blocked.backend.poll(blocked.run)["node-0"]
    assert isinstance(answer, NodeError) and "cannot be written" in answer.what
    assert blocked.client._session is None or not blocked.client._session.usable

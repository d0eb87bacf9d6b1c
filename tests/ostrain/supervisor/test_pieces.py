"""Pieces of a checkpoint that only a node outside the next attempt has, on run directories of this machine."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.backend import RunRef
from cluster.local_backend import LocalBackend
from cluster.recovery import NodeRecovery
from models.checkpoint.manifest import Manifest, Shard
from ostrain.plan import NodeAccess
from ostrain.supervisor.pieces import bring
from tests.cluster.toys import good, make_plan, node_plan, toy_bundle


class Nodes:
    """Three nodes, staged; a run on the first two."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.backend = folder, LocalBackend()
        access = NodeAccess("localhost", root=str(folder / "root"), python=sys.executable)
        nodes = tuple(node_plan(f"n{number}", access, ranks=(number,), node_rank=number) for number in range(3))
        self.all = make_plan("local", nodes)
        good(self.backend.stage(RunRef("run-1", self.all), toy_bundle(folder)))

    def path(self, node: int, step: int) -> Path:
        return self.folder / "root" / "runs" / "run-1" / f"n{node}" / "checkpoints" / f"step-{step}"

    def save(self, step: int, holders: dict[int, list[int]]) -> None:
        """A checkpoint of two shards; holders: node -> the shards it has."""
        shards, state = [b"a" * 3000, b"b" * 2000], b"{}"
        listed = tuple(
            Shard(f"shard-{number}", len(data), hashlib.sha256(data).hexdigest(), (f"n{number}",), ())
            for number, data in enumerate(shards)
        )
        manifest = Manifest(step, 2, 1.0, len(state), hashlib.sha256(state).hexdigest(), {}, listed)
        for node, numbers in holders.items():
            self.path(node, step).mkdir(parents=True)
            for number in numbers:
                (self.path(node, step) / f"shard-{number}").write_bytes(shards[number])
            (self.path(node, step) / "state.json").write_bytes(state)
            (self.path(node, step) / "manifest.json").write_bytes(manifest.encode())

    def bring(self, chosen: set[str], before: set[str]) -> list[str]:
        run = RunRef("run-1", self.all.only(chosen))
        return list(bring(self.backend, NodeRecovery(self.backend), run, self.all.only(before)))


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    made = Nodes(tmp_path)
    yield made
    made.backend.close()


def test_the_newest_checkpoint_that_all_have_together_is_made_whole_without_the_node_that_leaves(nodes: Nodes) -> None:
    nodes.save(8, {0: [0], 1: [1]})
    nodes.save(12, {0: [0], 1: []})  # its second shard is nowhere
    lines = nodes.bring({"n0", "n2"}, {"n0", "n1"})
    assert lines == ["1 files (2000 bytes) of step-8 from n1"]
    assert (nodes.path(2, 8) / "shard-1").read_bytes() == b"b" * 2000
    assert (nodes.path(2, 8) / "manifest.json").read_bytes() == (nodes.path(0, 8) / "manifest.json").read_bytes()
    assert not nodes.path(2, 12).exists()
    assert nodes.bring({"n0", "n2"}, {"n0", "n1"}) == [], "what is there is not sent again"


def test_a_node_that_is_gone_is_not_asked(nodes: Nodes) -> None:
    nodes.save(8, {0: [0, 1], 1: [1]})
    assert nodes.bring({"n0", "n2"}, {"n0"}) == []

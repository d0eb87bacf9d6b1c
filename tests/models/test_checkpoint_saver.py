"""Saving beside training, and loading in any layout."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from models.checkpoint import folder as folders
from models.checkpoint import lineage, snapshot
from models.checkpoint.find import find
from models.checkpoint.load import fetch, fit, read_pieces, refuse, whole
from models.checkpoint.manifest import Manifest
from models.checkpoint.pieces import Piece
from models.checkpoint.saver import Saver
from models.config import CheckpointConfig
from models.exits import BAD_CHECKPOINT, DISK_FULL, PayloadError
from models.parallel.world import World
from tests.models.checkpoints import KINDS, SHAPES, Nodes, facts, pieces, same, tensors
from tests.models.worlds import run_ranks


def manifest_of(path: Path) -> Manifest:
    return Manifest.decode((path / "manifest.json").read_bytes())


@pytest.mark.parametrize("wrote", [1, 2, 3, 4])
@pytest.mark.parametrize("reads", [1, 2, 3, 4])
def test_any_number_of_ranks_loads_what_any_other_wrote(tmp_path: Path, wrote: int, reads: int) -> None:
    Nodes(tmp_path, 1, wrote).save(7)
    step, loaded = Nodes(tmp_path, 1, reads).load()
    assert step == 7 and all(same(values, 7) for values in loaded)

    # Padded slices as ZeRO cuts them, other cuts than those that were written.
    def cut(size: int, rank: int, world: int) -> tuple[int, int]:
        width = -(-size // world)
        return min(rank * width, size), min((rank + 1) * width, size)

    _, parts = Nodes(tmp_path, 1, reads).load(cut)
    for key, value in tensors(7).items():
        assert np.concatenate([part[key] for part in parts]).tobytes() == value.tobytes()


def test_shards_are_safetensors_and_the_manifest_lists_them(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, 2, 4)
    nodes.save(3)
    first, second = nodes.path(0) / "step-3", nodes.path(1) / "step-3"
    assert (first / "manifest.json").read_bytes() == (second / "manifest.json").read_bytes()
    assert (first / "state.json").read_bytes() == (second / "state.json").read_bytes()
    assert sorted(os.listdir(first)) == [
        "manifest.json", "shard-00000-of-00004.safetensors", "shard-00001-of-00004.safetensors", "state.json",
    ]  # fmt: skip
    manifest = manifest_of(first)
    assert [shard.nodes for shard in manifest.shards] == [("node-0",), ("node-0",), ("node-1",), ("node-1",)]
    assert dict(manifest.tensors) == {f"{kind}/{name}": shape for kind in KINDS for name, shape in SHAPES.items()}
    loaded = safetensors.numpy.load_file(first / "shard-00001-of-00004.safetensors")
    value = tensors(3)["ema", "t_block.1.weight"].reshape(-1)
    assert np.array_equal(loaded["ema/t_block.1.weight@16"], value[16:33])
    assert json.loads((first / "state.json").read_text()) == facts(3, 4)


def test_training_goes_on_while_a_shard_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_write = threading.Event()
    write = snapshot.Snapshot.write

    def held_up(self: snapshot.Snapshot, path: Path) -> str:
        assert may_write.wait(30)
        return write(self, path)

    monkeypatch.setattr(snapshot.Snapshot, "write", held_up)
    weights = tensors(1)["model", "t_block.1.weight"]
    part = Piece("model", "w", weights.shape, 0, weights.size, lambda: weights.reshape(-1))
    before = weights.copy()
    saver = Saver(tmp_path, World(), "n", CheckpointConfig())
    assert saver.begin(1, [part], facts(1)) is None
    for _ in range(3):
        assert saver.busy and saver.progress() == 0.0 and saver.settle(saver.progress()) is None
        weights += 1.0  # the next steps change the weights: the snapshot does not see it
    may_write.set()
    saved = saver.drain()
    assert saved is not None and saved.step == 1 and saved.path == tmp_path / "step-1"
    assert saved.size == sum(shard.size for shard in manifest_of(saved.path).shards)
    found = find(tmp_path, World(), "n")
    assert next(read_pieces(found, [whole(found, "model", "w")])).tobytes() == before.tobytes()


def test_settle_step_by_step_commits_on_all_ranks_at_once(tmp_path: Path) -> None:
    def work(world: World) -> list[Any]:
        saver = Saver(tmp_path, world, "n", CheckpointConfig())
        saver.begin(5, pieces(tensors(5), world.rank, world.size), facts(5))
        deadline = time.monotonic() + 25
        for step in itertools.count():
            assert time.monotonic() < deadline, "never committed"
            saved = saver.settle(float(world.sum(np.array([saver.progress()], np.float32))[0]))
            if saved is not None:
                return [step, saved.step]
            time.sleep(0.001)

    told = run_ranks(3, work)
    assert told[0] == told[1] == told[2] and told[0][1] == 5


def test_beginning_again_finishes_what_is_on_its_way(tmp_path: Path) -> None:
    def work(world: World) -> Any:
        saver = Saver(tmp_path, world, "n", CheckpointConfig())
        saver.begin(1, pieces(tensors(1), world.rank, world.size), facts(1))
        first = saver.begin(2, pieces(tensors(2), world.rank, world.size), facts(2))
        second = saver.drain()
        assert saver.drain() is None and not saver.busy
        return first, second

    for first, second in run_ranks(2, work):
        assert (first.step, second.step) == (1, 2)
    assert folders.steps(tmp_path) == [1, 2]


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({"keep_last": 2}, [7, 8]),
        ({"keep_last": 1}, [8]),
        ({"keep_last": 2, "keep_every": 3}, [3, 6, 7, 8]),
        ({"keep_last": 10}, [1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_which_ones_are_kept(tmp_path: Path, config: dict[str, Any], kept: list[int]) -> None:
    nodes = Nodes(tmp_path, 2, 2)
    told = nodes.save(*range(1, 9), **config)
    assert folders.steps(nodes.path(0)) == folders.steps(nodes.path(1)) == kept
    assert sorted(step for saved in told for step in saved.removed) == [n for n in range(1, 9) if n not in kept]
    assert not [name for node in (0, 1) for name in os.listdir(nodes.path(node)) if name.startswith(".")]


def test_incomplete_ones_do_not_count_as_kept(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, 2, 2)
    nodes.save(1, 2, 3)
    (nodes.path(1) / "step-3" / "shard-00001-of-00002.safetensors").unlink()
    nodes.save(4, keep_last=2)
    assert folders.steps(nodes.path(0)) == [2, 3, 4]


def full(self: snapshot.Snapshot, path: Path) -> str:
    if "00001" in path.name:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    path.write_bytes(b"x")
    return ""


def test_a_full_disk_of_one_rank_is_everybodys_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(tmp_path, 2, 2)
    nodes.save(1)
    monkeypatch.setattr(snapshot.Snapshot, "write", full)

    def work(world: World, folder: Path, node: str) -> PayloadError:
        saver = Saver(folder, world, node, CheckpointConfig())
        with pytest.raises(PayloadError) as caught:
            saver.begin(2, pieces(tensors(2), world.rank, world.size), facts(2))
            saver.drain()
        assert not saver.busy
        return caught.value

    for error in nodes.each(work):
        assert error.exit_code == DISK_FULL and "no space left" in error.what
        assert "shard-00001-of-00002" in error.where and "(node node-1 rank 1)" in error.where
        assert error.why == "No space left on device"
    assert os.listdir(nodes.path(0)) == os.listdir(nodes.path(1)) == ["step-1"]
    assert nodes.find().step == 1


def test_pieces_that_leave_a_hole_are_refused(tmp_path: Path) -> None:
    value = np.zeros(10, np.float32)
    saver = Saver(tmp_path, World(), "n", CheckpointConfig())
    saver.begin(1, [Piece("model", "w", (10,), 0, 9, lambda: value[:9])], facts(1))
    with pytest.raises(PayloadError) as caught:
        saver.drain()
    assert "model/w has 9 values instead of 10" in caught.value.why
    with pytest.raises(ValueError, match="announced"):
        saver.begin(1, [Piece("model", "w", (10,), 0, 9, lambda: value)], facts(1))


def test_copies_survive_the_loss_of_a_disk(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, 3, 3)
    nodes.save(1, 2, copies=2)
    manifest = manifest_of(nodes.path(0) / "step-2")
    assert [shard.nodes for shard in manifest.shards] == [
        ("node-0", "node-1"), ("node-1", "node-2"), ("node-2", "node-0"),
    ]  # fmt: skip
    lose(nodes, 1)
    step, loaded = nodes.load()
    assert step == 2 and all(same(values, 2) for values in loaded)
    # What was fetched stays: the node holds the checkpoint again.
    assert nodes.find().holders == ((0, 1, 2), (0, 1, 2), (0, 1, 2))


def lose(nodes: Nodes, node: int) -> None:
    import shutil

    shutil.rmtree(nodes.path(node))


def test_without_copies_the_loss_of_a_disk_is_said_and_nothing_starts_anew(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, 2, 2)
    nodes.save(1, 2)
    lose(nodes, 1)
    with pytest.raises(PayloadError) as caught:
        nodes.find()
    error = caught.value
    assert error.exit_code == BAD_CHECKPOINT and "none is whole" in error.what
    assert "step-2: shard-00001-of-00002.safetensors is missing on every node (written on node-1)" in error.why
    assert "init_from" in error.next_step


def test_more_copies_than_nodes(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, 2, 2)
    nodes.save(1, copies=4)
    lose(nodes, 0)
    assert nodes.load()[0] == 1


def test_other_nodes_take_over_with_shards_of_both(tmp_path: Path) -> None:
    """A new third node fetches what it needs from the two that have it."""
    Nodes(tmp_path, 2, 4).save(6)
    step, loaded = Nodes(tmp_path, 3, 3).load()
    assert step == 6 and all(same(values, 6) for values in loaded)


def test_only_shards_that_are_needed_travel(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, 2, 4)
    nodes.save(1)

    def work(world: World, folder: Path, node: str) -> tuple[str, ...]:
        found = find(folder, world, node)
        size = 35
        wanted = [("model", "blocks.0.attn.qkv.weight", size * world.rank // 4, size * (world.rank + 1) // 4)]
        assert fetch(found, wanted, world)[1] == ()
        wanted = [("model", "blocks.0.attn.qkv.weight", 0, 2)]
        found, names = fetch(found, wanted, world)
        assert next(read_pieces(found, wanted)).size == 2
        return names

    assert set(nodes.each(work)) == {("shard-00000-of-00004.safetensors",)}
    assert (nodes.path(1) / "step-1" / "shard-00000-of-00004.safetensors").exists()
    assert not (nodes.path(0) / "step-1" / "shard-00002-of-00004.safetensors").exists()


def test_nodes_on_one_shared_disk_know_it(tmp_path: Path) -> None:
    def work(world: World) -> Any:
        folder = tmp_path / "shared" if world.rank else tmp_path / "x" / ".." / "shared"
        saver = Saver(folder, world, f"node-{world.rank}", CheckpointConfig(copies=2))
        saver.begin(1, pieces(tensors(1), world.rank, world.size), facts(1))
        saver.drain()
        return saver.places.names, saver.places.leader

    (tmp_path / "x").mkdir()
    assert run_ranks(2, work) == [(("node-0",), True), (("node-0",), False)]
    assert folders.steps(tmp_path / "shared") == [1]
    assert os.listdir(tmp_path / "shared") == ["step-1"]


def test_how_a_checkpoint_fits(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, 1, 1)
    nodes.save(1, values=lambda step: tensors(step, kinds=("model", "exp_avg")))
    found = nodes.find()
    wanted: dict[tuple[str, str], tuple[int, ...]] = {
        (kind, name): shape for kind in ("model", "ema") for name, shape in SHAPES.items()
    }
    fitting = fit(found, wanted)
    assert fitting.kinds == ("ema",) and fitting.loadable and len(fitting.unexpected) == len(SHAPES)
    wanted["model", "new.weight"] = (2,)
    wanted["model", "blocks.0.attn.qkv.bias"] = (4,)
    fitting = fit(found, wanted)
    assert not fitting.loadable
    error = refuse(found, fitting)
    assert error.exit_code == BAD_CHECKPOINT and "missing: model/new.weight [2]" in error.why
    assert "shape: model/blocks.0.attn.qkv.bias is [3], the run has [4]" in error.why
    with pytest.raises(PayloadError, match="does not hold"):
        list(read_pieces(found, [("ema", "unused.weight", 0, 1)]))


def test_the_same_step_again_replaces_the_old_one(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, 1, 2)
    nodes.save(3, values=lambda step: tensors(9))
    nodes.save(3)
    assert same(nodes.load()[1][0], 3)
    assert os.listdir(nodes.path(0)) == ["step-3"]


@pytest.mark.parametrize("cut", [False, True])
def test_a_shard_that_goes_bad_on_its_way_is_refused_on_every_rank(tmp_path: Path, cut: bool) -> None:
    nodes = Nodes(tmp_path, 2, 2)
    nodes.save(1)

    def work(world: World, folder: Path, node: str) -> PayloadError:
        found = find(folder, world, node)
        if world.rank == 0:
            path = found.path / "shard-00000-of-00002.safetensors"
            path.write_bytes(path.read_bytes()[:-4] if cut else path.read_bytes()[:-4] + b"abcd")
        world.barrier()
        with pytest.raises(PayloadError) as caught:
            fetch(found, [whole(found, "model", "t_block.1.weight")], world)
        return caught.value

    for error in nodes.each(work):
        assert "cannot be brought to this node" in error.what and "arrived damaged" in error.why
        assert "node node-1 rank 1" in error.where
    assert not [name for name in os.listdir(nodes.path(1) / "step-1") if "00000" in name]


def test_a_full_disk_while_copies_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(tmp_path, 2, 2)
    nodes.save(1)
    from models.checkpoint import copies

    def full(path: Path, chunks: Any) -> str:
        next(chunks)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(copies, "write_chunks", full)
    with pytest.raises(PayloadError) as caught:
        nodes.save(2, copies=2)
    assert caught.value.exit_code == DISK_FULL
    assert os.listdir(nodes.path(0)) == os.listdir(nodes.path(1)) == ["step-1"]


def test_a_failure_of_one_rank_is_told_by_the_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others may still be writing when they hear of it."""
    monkeypatch.setattr(snapshot.Snapshot, "write", full)

    def work(world: World) -> int:
        saver = Saver(tmp_path, world, "n", CheckpointConfig())
        saver.begin(1, pieces(tensors(1), world.rank, world.size), facts(1))
        with pytest.raises(PayloadError) as caught:
            for _ in range(10_000):
                saver.settle(float(world.sum(np.array([saver.progress()], np.float32))[0]))
                time.sleep(0.001)
        return caught.value.exit_code

    assert run_ranks(3, work) == [DISK_FULL] * 3
    assert folders.steps(tmp_path) == [] and os.listdir(tmp_path) == []


def test_what_an_attempt_wrote_after_the_run_had_gone_on_without_it_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """node-0 was cut off and wrote step 6; the others went on from step 2; then it came back."""
    cut_off, others = Nodes(tmp_path / "a", 1, 1), Nodes(tmp_path / "b", 1, 1)
    for nodes in (cut_off, others):
        nodes.save(2)
    monkeypatch.setenv("OSTRAIN_ATTEMPT", "1")
    cut_off.save(6)
    monkeypatch.setenv("OSTRAIN_ATTEMPT", "2")
    assert others.load()[0] == 2
    assert lineage.read(others.path(0)) == {2: 2}
    others.save(4)
    monkeypatch.setenv("OSTRAIN_ATTEMPT", "3")
    # Together again: the returned node's folder beside the other's.
    both = Nodes(tmp_path / "c", 2, 2)
    shutil.copytree(cut_off.path(0), both.path(0))
    shutil.copytree(others.path(0), both.path(1))

    def work(world: World, folder: Path, node: str) -> Any:
        found = find(folder, world, node)
        return found.step, found.problems

    step, problems = both.each(work)[0]
    assert step == 4
    assert "step-6: was written by attempt 1, but attempt 2 had gone on from step 2 without it" in problems[0]
    assert lineage.read(both.path(0)) == lineage.read(both.path(1)) == {2: 2, 3: 4}
    assert (both.path(0) / "step-6.broken").exists(), "kept aside for people"

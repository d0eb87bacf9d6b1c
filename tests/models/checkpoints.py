"""Small checkpoints for tests: a model of odd sizes, saved by several ranks on several nodes, all in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.checkpoint.find import Found, find
from models.checkpoint.load import Wanted, fetch, read_pieces, whole
from models.checkpoint.pieces import Piece
from models.checkpoint.saver import Saved, Saver
from models.config import CheckpointConfig
from models.parallel.world import World
from tests.models.worlds import run_ranks

SHAPES: dict[str, tuple[int, ...]] = {
    "blocks.0.attn.qkv.weight": (5, 7),
    "blocks.0.attn.qkv.bias": (3,),
    "final_layer.scale": (),
    "t_block.1.weight": (11, 2, 3),
    "unused.weight": (0, 4),
}
KINDS = ("model", "ema", "exp_avg", "exp_avg_sq")

Tensors = dict[tuple[str, str], np.ndarray]


def tensors(step: int, shapes: Mapping[str, tuple[int, ...]] = SHAPES, kinds: tuple[str, ...] = KINDS) -> Tensors:
    """What the tensors hold at a step: (kind, name) -> float32."""
    random = np.random.default_rng(step)
    return {
        (kind, name): random.standard_normal(shape).astype(np.float32)
        for kind in kinds
        for name, shape in shapes.items()
    }


def pieces(values: Tensors, rank: int, world: int) -> list[Piece]:
    """This rank's part: 1/world of everything."""
    parts = []
    for (kind, name), value in values.items():
        flat = value.reshape(-1)
        start, stop = flat.size * rank // world, flat.size * (rank + 1) // world
        parts.append(Piece(kind, name, value.shape, start, stop, lambda part=flat[start:stop]: part))
    return parts


def facts(step: int, world: int = 1) -> dict[str, Any]:
    return {
        "step": step,
        "seed": 42,
        "data": {"epoch": 0, "index": 4 * step, "sha256": "ab"},
        "layout": {"world": world, "dp": world, "sp": 1, "zero": 0},
        "versions": {"mindspore": "2.10"},
        "time": 1000.0 + step,
    }


@dataclass
class Nodes:
    """``count`` nodes with disks of their own below ``folder``; ranks are numbered node by node."""

    folder: Path
    count: int
    ranks: int

    def path(self, node: int) -> Path:
        return self.folder / f"node-{node}" / "checkpoints"

    def node_of(self, rank: int) -> int:
        return rank * self.count // self.ranks

    def each(self, work: Callable[[World, Path, str], Any]) -> list[Any]:
        """``work(world, folder, node name)`` on every rank."""

        def one(world: World) -> Any:
            node = self.node_of(world.rank)
            return work(world, self.path(node), f"node-{node}")

        return run_ranks(self.ranks, one)

    def save(self, *steps: int, values: Callable[[int], Tensors] = tensors, **config: Any) -> list[Saved]:
        """Saves steps one after the other; what rank 0 was told of each."""

        def work(world: World, folder: Path, node: str) -> list[Saved]:
            saver = Saver(folder, world, node, CheckpointConfig(**config))
            told = []
            for step in steps:
                assert saver.begin(step, pieces(values(step), world.rank, world.size), facts(step, world.size)) is None
                saved = saver.drain()
                assert saved is not None
                told.append(saved)
            return told

        return self.each(work)[0]  # type: ignore[no-any-return]

    def find(self) -> Found:
        """As rank 0 was told; the same on every rank."""
        found: list[Found] = self.each(lambda world, folder, node: find(folder, world, node))
        for other in found:
            assert (other.step, other.state, other.problems, other.notes, other.holders) == (
                found[0].step, found[0].state, found[0].problems, found[0].notes, found[0].holders,
            )  # fmt: skip
        return found[0]

    def load(self, part: Callable[[int, int, int], tuple[int, int]] | None = None) -> tuple[int, list[Tensors]]:
        """(step, what each rank loaded). ``part(size, rank, world)`` chooses ranges; None: whole tensors everywhere."""

        def work(world: World, folder: Path, node: str) -> tuple[int, Tensors]:
            found = find(folder, world, node)
            if not found.exists:
                return 0, {}
            assert found.manifest is not None
            keys = [(key.partition("/")[0], key.partition("/")[2]) for key in found.manifest.tensors]
            wanted: list[Wanted] = []
            for kind, name in keys:
                stop = whole(found, kind, name)[3]
                wanted.append((kind, name, *(part(stop, world.rank, world.size) if part else (0, stop))))
            found, _ = fetch(found, wanted, world)
            return found.step, dict(zip(keys, read_pieces(found, wanted), strict=True))

        loaded = self.each(work)
        assert len({step for step, _ in loaded}) == 1
        return loaded[0][0], [values for _, values in loaded]


def same(loaded: Tensors, step: int) -> bool:
    """True if whole tensors are bit for bit those of ``step``."""
    expected = tensors(step)
    return set(loaded) == set(expected) and all(
        loaded[key].tobytes() == value.tobytes() for key, value in expected.items()
    )

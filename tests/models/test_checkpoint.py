"""Files and folders of checkpoints: safetensors, manifests, and what crashes leave behind."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from models.checkpoint import folder as folders
from models.checkpoint.folder import Local
from models.checkpoint.keeping import superfluous
from models.checkpoint.manifest import BadManifest, Manifest, Shard, tiling_problem
from models.checkpoint.tensors import BadTensors, read_header, read_range, read_tensors
from tests.models.checkpoints import Nodes, same

REPO = Path(__file__).parents[2]


def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "blocks.0.weight": random.standard_normal((5, 7)).astype(np.float32),
        "a.bias": random.standard_normal(3).astype(np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "step": np.asarray(17, np.int64),
    }


def test_safetensors_are_read_whole_and_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    safetensors.numpy.save_file(arrays(), path)
    values = read_tensors(path)
    assert set(values) == set(arrays())
    for key, value in arrays().items():
        assert values[key].dtype == value.dtype and np.array_equal(values[key], value)
    part = read_range(path, read_header(path)["blocks.0.weight"], 3, 20)
    assert np.array_equal(part, arrays()["blocks.0.weight"].reshape(-1)[3:20])


def test_foreign_files_are_read_bfloat16_included(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    safetensors.numpy.save_file({"half": np.arange(6, dtype=np.float16).reshape(2, 3), "flag": np.array([True])}, path)
    assert read_tensors(path)["half"].tolist() == [[0, 1, 2], [3, 4, 5]]
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes.fromhex("803f40c0"))
    assert read_tensors(path)["w"].tolist() == [1.0, -3.0]
    assert read_range(path, read_header(path)["w"], 1, 2).tolist() == [-3.0]


@pytest.mark.parametrize("cut", [0, 4, 20, -1])
def test_cut_files_are_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "m.safetensors"
    safetensors.numpy.save_file(arrays(), path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(BadTensors):
        read_header(path)


def example() -> Manifest:
    pieces = (("model/w", 0, 4), ("model/b", 0, 3)), (("model/w", 4, 6), ("model/e", 0, 0))
    shards = tuple(Shard(f"s{n}", 10 + n, "ab", (f"node-{n}",), held) for n, held in enumerate(pieces))
    return Manifest(3, 2, 12.345, 7, "cd", {"model/w": (2, 3), "model/b": (3,), "model/e": (0,)}, shards)


def test_a_manifest_comes_back_as_it_was() -> None:
    manifest = example()
    assert Manifest.decode(manifest.encode()) == manifest
    assert Manifest.decode(manifest.encode()).digest == manifest.digest
    assert manifest.size == 21 and manifest.kinds == ("model",)
    assert tiling_problem(manifest.tensors, manifest.shards) == ""


def test_any_flipped_bit_of_a_manifest_is_noticed() -> None:
    data = example().encode()
    for bit in range(8 * len(data)):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadManifest):
            Manifest.decode(bytes(broken))


def test_an_unknown_format_is_told_as_such() -> None:
    with pytest.raises(BadManifest, match="format 1 is not known"):
        Manifest.decode(json.dumps({"format": 1, "files": {}}).encode())


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ((("model/w", 0, 4), ("model/b", 0, 3)), "model/w has 4 values instead of 6"),
        ((("model/w", 0, 4), ("model/w", 3, 6), ("model/b", 0, 3)), "model/w is held twice from 3"),
        ((("model/w", 0, 2), ("model/w", 3, 6), ("model/b", 0, 3)), "model/w is not held from 2"),
        ((("model/w", 0, 6), ("model/x", 0, 3)), "model/x, which is not in the list"),
    ],
)
def test_pieces_must_tile_every_tensor(pieces: tuple[tuple[str, int, int], ...], said: str) -> None:
    shard = dataclasses.replace(example().shards[0], pieces=pieces)
    assert said in tiling_problem({"model/w": (2, 3), "model/b": (3,)}, [shard])


def held(step: int, present: tuple[int, ...] = (0, 1), digest: str = "d") -> Local:
    return Local(step, f"step-{step}", digest, 0.0, 2, present, (), None)


@pytest.mark.parametrize(
    ("nodes", "keep_last", "keep_every", "gone"),
    [
        ([[held(1), held(2), held(3)]], 2, None, [1, 2]),
        ([[held(1), held(2), held(3)]], 5, None, []),
        ([[held(1), held(2), held(3)]], 1, 2, [1, 3]),
        # Shards of two nodes make a step whole; half of one does not count.
        ([[held(1, (0,)), held(2, (0,)), held(3, (0,))], [held(1, (1,)), held(3, (1,))]], 2, None, [1, 2]),
        ([[held(1), held(2), held(3, (0,))]], 2, None, [1]),
        # Steps beyond the one saved belong to another time.
        ([[held(1), held(9)]], 1, None, [1]),
    ],
)
def test_what_is_superfluous(nodes: list[list[Local]], keep_last: int, keep_every: int | None, gone: list[int]) -> None:
    assert superfluous(4, nodes, keep_last, keep_every) == gone


def test_recover_puts_back_what_stepped_aside(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, 1, 1)
    nodes.save(3)
    folder = nodes.path(0)
    (folder / "step-3").rename(folder / ".step-3.replaced")
    (folder / ".step-1.removed").mkdir()
    (folder / ".here-ab12").touch()
    assert folders.recover(folder) == [".here-ab12", ".step-1.removed"]
    assert os.listdir(folder) == ["step-3"] and same(nodes.load()[1][0], 3)


def test_killed_between_stepping_aside_and_taking_the_place(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, 1, 1)
    nodes.save(3)
    folder = nodes.path(0)
    (folder / "step-3").rename(tmp_path / "new")
    nodes.save(3)
    (folder / "step-3").rename(folder / ".step-3.replaced")
    (tmp_path / "new").rename(folder / ".step-3.writing")
    found = nodes.find()
    assert found.step == 3 and os.listdir(folder) == ["step-3"]


def test_unfinished_and_foreign_folders_are_no_checkpoints(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, 1, 1)
    assert nodes.find().step == 0 and not nodes.find().exists
    folder = nodes.path(0)
    (folder / ".step-4.writing").mkdir(parents=True)
    (folder / ".step-4.writing" / "shard-00000-of-00001.safetensors").write_bytes(b"x")
    (folder / "step-x").mkdir()
    found = nodes.find()
    assert found.step == 0 and found.notes == ("removed .step-4.writing, left by an interrupted write",)
    assert os.listdir(folder) == ["step-x"]


FULL = """
import errno, resource, sys
from pathlib import Path
import numpy as np
from models.checkpoint.pieces import Piece
from models.checkpoint.saver import Saver
from models.config import CheckpointConfig
from models.exits import DISK_FULL, PayloadError
from models.parallel.world import World

saver = Saver(Path(sys.argv[1]), World(), "n", CheckpointConfig())


def save(step, size):
    saver.begin(step, [Piece("model", "w", (size,), 0, size, lambda: np.ones(size, np.float32))], {"step": step})
    saver.drain()


save(1, 100)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save(2, 1_000_000)
except PayloadError as error:
    print(error.what, error.where)
    sys.exit(0 if error.exit_code == DISK_FULL else 3)
sys.exit(4)
"""


def test_no_room_leaves_the_earlier_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], cwd=REPO, timeout=60, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "no space left" in done.stdout
    assert os.listdir(tmp_path) == ["step-1"]


def test_full_disk_is_told_from_other_errors() -> None:
    from models.exits import DISK_FULL
    from models.faults import as_payload_error

    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        error = as_payload_error(OSError(number, os.strerror(number), "/data/x"))
        assert error is not None and error.exit_code == DISK_FULL and error.where == "/data/x"
    assert as_payload_error(OSError(errno.EACCES, "denied")) is None
    assert as_payload_error(ValueError("x")) is None


@pytest.mark.parametrize("module", ["view", "convert", "compare", "find", "load", "saver", "folder", "manifest"])
def test_no_mindspore_is_needed(module: str) -> None:
    """The control plane uses these; manifests and folders are read without numpy, too."""
    light = "numpy" if module in ("view", "folder", "manifest") else "mindspore"
    code = f"import sys, models.checkpoint.{module}; sys.exit(any(n in sys.modules for n in ('mindspore', {light!r})))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO, timeout=60, check=False).returncode == 0

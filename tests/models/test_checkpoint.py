"""Checkpoints on disk: whole or not there, whatever happens while one is written."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from models.checkpoint import newest_complete, prune, recover, verify, write
from models.checkpoint.store import steps
from models.checkpoint.tensors import BadTensors, read_header, read_tensors, source, write_tensors

REPO = Path(__file__).parents[2]


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "blocks.0.weight": random.standard_normal((5, 7)).astype(np.float32),
        "a.bias": random.standard_normal(3).astype(np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "step": np.asarray(17, np.int64),
    }


def save(folder: Path, step: int) -> Path:
    tensors = {name: {key: source(value) for key, value in arrays(step).items()} for name in ("model.safetensors",)}
    return write(folder, step, tensors, {"step": step})


def test_written_files_are_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    size, digest = write_tensors(path, {key: source(value) for key, value in arrays().items()})
    loaded = safetensors.numpy.load_file(path)
    assert size == path.stat().st_size
    assert len(digest) == 64
    for values in (loaded, read_tensors(path)):
        assert set(values) == set(arrays())
        for key, value in arrays().items():
            assert values[key].dtype == value.dtype and np.array_equal(values[key], value)


def test_foreign_files_are_read_bfloat16_included(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    safetensors.numpy.save_file({"half": np.arange(6, dtype=np.float16).reshape(2, 3), "flag": np.array([True])}, path)
    assert read_tensors(path)["half"].tolist() == [[0, 1, 2], [3, 4, 5]]
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes.fromhex("803f40c0"))
    assert read_tensors(path)["w"].tolist() == [1.0, -3.0]


@pytest.mark.parametrize("cut", [0, 4, 20, -1])
def test_cut_files_are_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "m.safetensors"
    write_tensors(path, {key: source(value) for key, value in arrays().items()})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(BadTensors):
        read_header(path)


def test_newest_complete_checkpoint_wins(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        save(tmp_path, step)
    found = newest_complete(tmp_path)
    assert (found.path, found.step, found.problems) == (tmp_path / "step-10", 10, ())
    assert newest_complete(tmp_path / "none").path is None


@pytest.mark.parametrize("damage", ["manifest", "flip", "short", "gone", "other", "garbage"])
def test_broken_ones_are_passed_over_and_named(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    weights = path / "model.safetensors"
    if damage == "manifest":
        (path / "manifest.json").unlink()
    elif damage == "flip":
        data = bytearray(weights.read_bytes())
        data[-3] ^= 1
        weights.write_bytes(data)
    elif damage == "short":
        os.truncate(weights, 50)
    elif damage == "gone":
        weights.unlink()
    elif damage == "other":
        path.rename(tmp_path / "step-3")
    else:
        (path / "manifest.json").write_text("[1")
    found = newest_complete(tmp_path)
    assert found.step == 1
    said = {
        "manifest": "manifest.json is missing",
        "flip": "does not have the content",
        "short": "has 50 bytes instead of",
        "gone": "model.safetensors is missing",
        "other": "manifest is that of step 2",
        "garbage": "manifest.json is damaged",
    }
    assert len(found.problems) == 1 and said[damage] in found.problems[0]


def test_old_ones_go_broken_ones_do_not_count(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step)
    (tmp_path / "step-4" / "manifest.json").unlink()
    assert prune(tmp_path, 2) == [1, 2]
    assert steps(tmp_path) == [3, 4, 5]
    assert prune(tmp_path, 2) == []


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    (path / "model.safetensors").write_bytes(b"old")
    assert verify(save(tmp_path, 3)) == ""
    assert sorted(os.listdir(tmp_path)) == ["step-3"]


def test_recover_puts_back_what_stepped_aside(tmp_path: Path) -> None:
    save(tmp_path, 3).rename(tmp_path / ".step-3.replaced")
    (tmp_path / ".step-4.writing").mkdir()
    (tmp_path / ".step-1.removed").mkdir()
    assert recover(tmp_path) == [".step-1.removed", ".step-4.writing"]
    assert newest_complete(tmp_path).step == 3


KILL = """
import os, random, select, signal, sys, time
from pathlib import Path
import numpy as np
from models.checkpoint import newest_complete, prune, recover, write
from models.checkpoint.tensors import source

folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
chance = random.Random(1)


def save_for_ever(start, pipe):
    step = start
    while True:
        step += 1
        values = {f"w{n}": source(np.full((64, 257), step, np.float32)) for n in range(4)}
        write(folder, step, {"model.safetensors": values, "ema.safetensors": values}, {"step": step})
        os.write(pipe, step.to_bytes(8, "little"))
        prune(folder, 2)


newest = 0
partial = 0
for _ in range(rounds):
    recover(folder)
    read, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        save_for_ever(newest, write_end)
    os.close(write_end)
    time.sleep(chance.uniform(0.002, 0.08))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    said = b""
    while chunk := os.read(read, 65536):
        said += chunk
    os.close(read)
    acknowledged = int.from_bytes(said[-8:], "little") if said else newest
    partial += any(path.name.startswith(".") for path in folder.iterdir()) if folder.exists() else 0
    found = newest_complete(folder)
    # What was acknowledged is there; at most the one being written beyond it; nothing that looks whole is broken.
    assert found.problems == (), found
    assert acknowledged <= found.step <= acknowledged + 1, (acknowledged, found)
    newest = found.step
print(newest, partial)
"""


def test_killed_at_100_random_moments(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILL, str(tmp_path / "checkpoints"), "100"],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    newest, partial = (int(word) for word in done.stdout.split())
    assert newest > 20
    # The kills did fall into the middle of writes.
    assert partial > 20


FULL = """
import errno, resource, signal, sys
from pathlib import Path
import numpy as np
from models.checkpoint import write
from models.checkpoint.tensors import source

folder = Path(sys.argv[1])
tensors = lambda size: {"model.safetensors": {"w": source(np.ones(size, np.float32))}}
write(folder, 1, tensors(100), {})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write(folder, 2, tensors(1_000_000), {})
except OSError as error:
    sys.exit(0 if error.errno == errno.EFBIG else 3)
sys.exit(4)
"""


def test_no_room_leaves_the_earlier_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], cwd=REPO, timeout=60, check=False)
    assert done.returncode == 0
    assert os.listdir(tmp_path) == ["step-1"]
    assert newest_complete(tmp_path).step == 1


def test_full_disk_is_told_from_other_errors() -> None:
    from models.exits import DISK_FULL
    from models.faults import as_payload_error

    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        error = as_payload_error(OSError(number, os.strerror(number), "/data/x"))
        assert error is not None and error.exit_code == DISK_FULL and error.where == "/data/x"
    assert as_payload_error(OSError(errno.EACCES, "denied")) is None
    assert as_payload_error(ValueError("x")) is None

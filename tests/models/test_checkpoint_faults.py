"""200 seeded faults: whatever happens to the files, the newest step that is whole is found, and loads bit for bit."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from models.exits import BAD_CHECKPOINT, PayloadError
from tests.models.checkpoints import Nodes, same

REPO = Path(__file__).parents[2]
STEPS = (2, 4, 6)


def test_killed_at_100_random_bytes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.checkpoint_kills", str(tmp_path), "100", "1"],
        cwd=REPO, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rounds, unfinished, newest = (int(word) for word in done.stdout.split())
    # The kills did fall into the middle of saves, and saves before them did succeed.
    assert rounds == 100 and unfinished > 50 and newest > 5


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int, int], Path]:
    """Runs with three checkpoints each, by (nodes, ranks, copies)."""
    made = {}
    for kind in ((1, 1, 1), (1, 3, 1), (2, 2, 1), (2, 4, 2), (3, 3, 2)):
        folder = tmp_path_factory.mktemp("run")
        nodes = Nodes(folder, kind[0], kind[1])
        nodes.save(*STEPS, copies=kind[2])
        made[kind] = folder
    return made


def contents(nodes: Nodes) -> dict[tuple[int, int, str], str]:
    """SHA-256 of every file, by (node, step, name)."""
    found = {}
    for node in range(nodes.count):
        for path in nodes.path(node).glob("step-*/*"):
            step = int(path.parent.name.partition("-")[2])
            found[node, step, path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def harm(nodes: Nodes, chance: random.Random) -> str:
    """One fault; what it was."""
    node = chance.randrange(nodes.count)
    kind = chance.choices(["truncate", "delete", "flip", "step", "disk"], [4, 3, 4, 1, 1])[0]
    files = sorted(path for path in nodes.path(node).glob("step-*/*"))
    if not files or kind == "disk":
        shutil.rmtree(nodes.path(node), ignore_errors=True)
        return f"disk of node {node}"
    path = chance.choice(files)
    if kind == "truncate":
        os.truncate(path, chance.randrange(path.stat().st_size + 1) if path.stat().st_size else 0)
    elif kind == "delete":
        path.unlink()
    elif kind == "step":
        shutil.rmtree(path.parent)
    elif path.stat().st_size:
        data = bytearray(path.read_bytes())
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
    return f"{kind} {path.relative_to(nodes.folder)}"


def newest_whole(before: dict[tuple[int, int, str], str], after: dict[tuple[int, int, str], str]) -> int:
    """The newest step of which every file is still somewhere as it was; 0 if there is none."""
    for step in sorted(STEPS, reverse=True):
        wanted = {(name, sha) for (_, number, name), sha in before.items() if number == step}
        left = {(name, sha) for (_, number, name), sha in after.items() if number == step}
        if wanted <= left:
            return step
    return 0


@pytest.mark.parametrize("seed", range(100))
def test_damaged_files(originals: dict[tuple[int, int, int], Path], tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    kind = sorted(originals)[seed % len(originals)]
    nodes = Nodes(tmp_path / "run", kind[0], kind[1])
    shutil.copytree(originals[kind], nodes.folder)
    before = contents(nodes)
    faults = [harm(nodes, chance) for _ in range(chance.choice([1, 1, 2, 4]))]
    after = contents(nodes)
    expected = newest_whole(before, after)
    # A step folder without files is still one that was said to be there.
    if not expected and any(list(nodes.path(node).glob("step-*")) for node in range(nodes.count)):
        with pytest.raises(PayloadError) as caught:
            nodes.load()
        assert caught.value.exit_code == BAD_CHECKPOINT, faults
        return
    step, loaded = nodes.load()
    assert step == expected, faults
    assert all(same(values, step) for values in loaded) or step == 0, faults
    # What could not be used is kept for people, and does not come up again.
    again = nodes.find()
    assert again.step == step and again.notes == ()
    # A run goes on behind it.
    nodes.save(step + 1)
    assert nodes.load()[0] == step + 1


def test_what_is_passed_over_is_named(originals: dict[tuple[int, int, int], Path], tmp_path: Path) -> None:
    nodes = Nodes(tmp_path / "run", 2, 2)
    shutil.copytree(originals[2, 2, 1], nodes.folder)
    os.truncate(nodes.path(0) / "step-6" / "shard-00000-of-00002.safetensors", 50)
    data = bytearray((nodes.path(1) / "step-4" / "shard-00001-of-00002.safetensors").read_bytes())
    data[-1] ^= 1
    (nodes.path(1) / "step-4" / "shard-00001-of-00002.safetensors").write_bytes(data)
    (nodes.path(1) / "step-6" / "manifest.json").write_text("[1")
    found = nodes.find()
    assert found.step == 2
    size = (nodes.path(0) / "step-2" / "shard-00000-of-00002.safetensors").stat().st_size
    assert found.problems == (
        "node-1: step-6: manifest.json is damaged",
        f"node-0: step-6: shard-00000-of-00002.safetensors has 50 bytes instead of {size}",
        "node-1: step-4: shard-00001-of-00002.safetensors does not have the content its manifest says",
    )
    assert "node-0: step-4 cannot be used; kept aside as step-4.broken" in found.notes
    assert sorted(os.listdir(nodes.path(1))) == ["step-2", "step-4.broken", "step-6.broken"]
    # Written again, they take the place of what was set aside.
    nodes.save(4, 6)
    assert sorted(os.listdir(nodes.path(1))) == ["step-2", "step-4", "step-6"]

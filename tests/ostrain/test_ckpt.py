"""``ostrain ckpt`` on folders, on several nodes' folders, and on runs whose nodes are elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import cluster.backends
from cluster.backend import NodeError
from cluster.client import AgentClient
from cluster.local import LocalTransport
from cluster.node_backend import NodeBackend
from models.checkpoint.convert import to_bfloat16
from ostrain.__main__ import main
from ostrain.plan import NodeAccess, NodePlan
from ostrain.store import Store
from tests.cluster.toys import make_plan, node_plan
from tests.models.checkpoints import SHAPES, Nodes, same, tensors

REPO = Path(__file__).parents[2]


@dataclass
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Said]


@pytest.fixture
def ckpt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs ``ostrain ckpt …`` as ``main`` does, with a home of its own."""
    for name in ("STATE", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / "home" / name.lower()))

    def command(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["ostrain", "ckpt", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        assert "a fault in ostrain" not in told.err, told.err
        return Said(int(ended.value.code or 0), told.out, told.err)

    return command


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """A folder of checkpoints of one node, two ranks: steps 3 and 5."""
    nodes = Nodes(tmp_path / "one", 1, 2)
    nodes.save(3, 5)
    return nodes.path(0)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """``runs/r``: the run directories of two nodes that this machine plays."""
    nodes = Nodes(tmp_path / "root" / "runs" / "r", 2, 4)
    nodes.save(3, 5)
    for node in range(2):
        (nodes.path(node).parent / "train.yaml").write_text("checkpoint: {dir: checkpoints}\n")
    return nodes.folder


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)


def test_ls_tells_steps_layout_and_size(ckpt: Command, one: Path) -> None:
    said = ckpt("ls", one)
    assert said.code == 0
    rows = [line.split() for line in said.out.splitlines()]
    assert rows[0] == ["STEP", "STATE", "LAYOUT", "SHARDS", "SIZE", "AGE", "NODES"]
    assert rows[1][:6] == ["3", "whole", "dp2", "sp1", "zero0", "2/2"] and rows[2][0] == "5"
    listed = ckpt("ls", one, "--json").json["checkpoints"]
    assert [row["step"] for row in listed] == [3, 5]
    size = sum(path.stat().st_size for path in (one / "step-5").glob("shard-*"))
    assert listed[1]["bytes"] == size and listed[1]["whole"] and listed[1]["problems"] == []
    assert listed[1]["kinds"] == ["ema", "exp_avg", "exp_avg_sq", "model"]


def test_ls_names_what_is_wrong(ckpt: Command, one: Path) -> None:
    (one / "step-3" / "shard-00001-of-00002.safetensors").unlink()
    os.truncate(one / "step-5" / "shard-00000-of-00002.safetensors", 77)
    shutil.copytree(one / "step-3", one / "step-4.broken")
    (one / "step-7").mkdir()
    said = ckpt("ls", one)
    assert said.code == 0
    assert "step-5/shard-00000-of-00002.safetensors has 77 bytes instead of" in said.out
    assert "  shard-00001-of-00002.safetensors is missing (written on node-0)" in said.out
    assert "step-7/manifest.json is missing" in said.out
    states = {row["name"]: (row["whole"], row["aside"]) for row in ckpt("ls", one, "--json").json["checkpoints"]}
    assert states == {
        "step-3": (False, False), "step-4.broken": (False, True), "step-5": (False, False), "step-7": (False, False),
    }  # fmt: skip


@pytest.mark.parametrize("place", ["run", "node", "folder", "step"])
def test_nodes_of_a_run_are_found_together(ckpt: Command, two: Path, place: str) -> None:
    path = {
        "run": two,
        "node": two / "node-1",
        "folder": two / "node-1" / "checkpoints",
        "step": two / "node-1" / "checkpoints" / "step-5",
    }[place]
    rows = ckpt("ls", path, "--json").json["checkpoints"]
    assert [row["step"] for row in rows] == ([5] if place == "step" else [3, 5])
    assert all(row["whole"] and row["nodes"] == ["node-0", "node-1"] for row in rows)


def test_folders_of_several_nodes_come_together(ckpt: Command, two: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    shutil.copytree(two / "node-0" / "checkpoints", first)
    shutil.copytree(two / "node-1" / "checkpoints", second)
    assert not ckpt("ls", first, "--json").json["checkpoints"][0]["whole"]
    assert ckpt("ls", first, second, "--json").json["checkpoints"][0]["whole"]
    out = tmp_path / "m.safetensors"
    assert ckpt("export", first, second, out).code == 0
    said = ckpt("export", first, tmp_path / "n.safetensors")
    assert (
        said.code == 1 and "no checkpoint there is whole" in said.err and "is missing (written on node-1)" in said.err
    )


def test_verify_finds_a_flipped_bit(ckpt: Command, two: Path) -> None:
    said = ckpt("verify", two)
    assert said.code == 0 and said.out.splitlines()[0].startswith("step-3: whole, 4 of 4 shards")
    damaged = two / "node-1" / "checkpoints" / "step-5" / "shard-00002-of-00004.safetensors"
    flip(damaged)
    said = ckpt("verify", two)
    assert said.code == 1
    assert "step-5: NOT WHOLE, 3 of 4 shards" in said.out
    assert f"{damaged} does not have the content its manifest says" in said.out
    assert ckpt("verify", two, "--step", 3).code == 0
    rows = ckpt("verify", two, "--json").json["checkpoints"]
    assert [row["whole"] for row in rows] == [True, False]
    said = ckpt("export", two, two / "x.safetensors", "--step", 5)
    assert said.code == 1 and "step 5 is damaged" in said.err and not (two / "x.safetensors").exists()


def test_a_damaged_copy_beside_a_whole_one(ckpt: Command, tmp_path: Path) -> None:
    nodes = Nodes(tmp_path / "run", 2, 2)
    nodes.save(1, copies=2)
    flip(nodes.path(0) / "step-1" / "shard-00000-of-00002.safetensors")
    said = ckpt("verify", nodes.folder)
    assert said.code == 1 and "step-1: whole, but not every copy is, 2 of 2 shards" in said.out
    out = tmp_path / "m.safetensors"
    assert ckpt("export", nodes.folder, out).code == 0
    assert (
        safetensors.numpy.load_file(out)["t_block.1.weight"].tobytes()
        == tensors(1)["model", "t_block.1.weight"].tobytes()
    )


@pytest.mark.parametrize("ema", [False, True])
def test_export_gives_whole_tensors_under_pytorch_names(ckpt: Command, two: Path, tmp_path: Path, ema: bool) -> None:
    out = tmp_path / "deep" / "model.safetensors"
    said = ckpt("export", two, out, "--step", 3, *(["--ema"] if ema else []))
    assert said.code == 0 and f"{'averages' if ema else 'model'} of step 3 written" in said.err
    loaded = safetensors.numpy.load_file(out)
    expected = tensors(3)
    assert set(loaded) == set(SHAPES)
    for name in SHAPES:
        assert loaded[name].tobytes() == expected["ema" if ema else "model", name].tobytes()
        assert loaded[name].shape == SHAPES[name]
    with safetensors.safe_open(out, "np") as file:
        assert file.metadata() == {"format": "pt", "step": "3", "weights": "ema" if ema else "model"}
    assert os.listdir(out.parent) == ["model.safetensors"]


def test_export_in_half_precision(ckpt: Command, tmp_path: Path) -> None:
    big = {("model", "w"): np.array([1.0, 1e5, -3.14159, 0.0], np.float32)}
    nodes = Nodes(tmp_path / "run", 1, 1)
    nodes.save(1, values=lambda step: big)
    out = tmp_path / "half.safetensors"
    said = ckpt("export", nodes.folder, out, "--dtype", "fp16")
    assert said.code == 0 and "became infinite in w" in said.err
    assert np.array_equal(safetensors.numpy.load_file(out)["w"], np.array([1.0, np.inf, -3.14159, 0.0], np.float16))
    said = ckpt("export", nodes.folder, out, "--dtype", "bf16")
    assert said.code == 2 and "exists" in said.err and "--force" in said.err
    assert ckpt("export", nodes.folder, out, "--dtype", "bf16", "--force").code == 0
    data = out.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["w"]["dtype"] == "BF16"
    assert np.frombuffer(data[-8:], np.uint16).tolist() == [0x3F80, 0x47C3, 0xC049, 0]


def test_bfloat16_rounds_to_nearest_even() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F800000, 0x7FC00001, 0xFF800001, 0x7F7FFFFF], np.uint32)
    assert to_bfloat16(bits.view(np.float32)).tolist() == [0x3F80, 0x3F82, 0x3F81, 0x7F80, 0x7FC0, 0x7FC0, 0x7F80]


def test_export_of_averages_that_are_not_there(ckpt: Command, tmp_path: Path) -> None:
    nodes = Nodes(tmp_path / "run", 1, 1)
    nodes.save(1, values=lambda step: tensors(step, kinds=("model",)))
    said = ckpt("export", nodes.folder, tmp_path / "m.safetensors", "--ema")
    assert said.code == 1 and "no moving averages" in said.err and "--ema" in said.err


@pytest.mark.parametrize("world", [1, 3, 7])
def test_resharded_is_the_same(ckpt: Command, two: Path, tmp_path: Path, world: int) -> None:
    other = Nodes(tmp_path / "other", 1, 1)
    said = ckpt("reshard", two, other.path(0), "--world", world)
    assert said.code == 0 and f"in {world} shards" in said.err
    step, loaded = other.load()
    assert step == 5 and same(loaded[0], 5)
    assert len(list((other.path(0) / "step-5").glob("shard-*"))) == world
    said = ckpt("diff", two, other.path(0))
    assert said.code == 0 and said.err == "all tensors are equal\n"
    said = ckpt("reshard", two, other.path(0), "--world", 2)
    assert said.code == 2 and "exists" in said.err


def test_diff_names_tensors_facts_and_how_much(ckpt: Command, one: Path, tmp_path: Path) -> None:
    values = tensors(5)
    values["ema", "t_block.1.weight"][3, 1, 2] += 0.5
    values["model", "final_layer.scale"] = np.float32(np.nan).reshape(())
    del values["exp_avg", "blocks.0.attn.qkv.bias"]
    values["model", "new"] = np.zeros(2, np.float32)
    values["exp_avg_sq", "blocks.0.attn.qkv.bias"] = np.zeros(4, np.float32)
    other = Nodes(tmp_path / "other", 1, 1)
    other.save(5, values=lambda step: values)
    said = ckpt("diff", one, other.path(0), "--json")
    assert said.code == 1
    found = {row["tensor"]: (row["what"], row["max_abs"]) for row in said.json["tensors"]}
    assert found.pop("ema/t_block.1.weight") == ("values", pytest.approx(0.5, rel=1e-6))
    assert found == {
        "exp_avg/blocks.0.attn.qkv.bias": ("only in the first", None),
        "model/new": ("only in the second", None),
        "exp_avg_sq/blocks.0.attn.qkv.bias": ("shape [3] against [4]", None),
        "model/final_layer.scale": ("values", "nan"),
    }
    assert {"name": "layout.world", "a": 2, "b": 1} in said.json["facts"]
    said = ckpt("diff", one, other.path(0))
    assert "layout.world: 2 | 1" in said.out and "5 of 21 tensors differ" in said.err
    assert ckpt("diff", one / "step-3", one / "step-5").code == 1
    assert ckpt("diff", one / "step-3", one / "step-3").code == 0


def test_diff_with_a_file_of_weights(ckpt: Command, one: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    ckpt("export", one, out, "--ema")
    assert ckpt("diff", one, out, "--ema").code == 0
    assert ckpt("diff", out, one, "--ema").code == 0
    assert ckpt("diff", out, out).code == 0
    said = ckpt("diff", one, out)
    assert said.code == 1 and "4 of 5 tensors differ" in said.err
    (tmp_path / "text.safetensors").write_text("these are no tensors")
    said = ckpt("diff", one, tmp_path / "text.safetensors")
    assert said.code == 2 and "not a safetensors file" in said.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("ls", "/no/such"), "no checkpoints at '/no/such'"),
        (("verify", "{one}", "--step", "4"), "there is no checkpoint of step 4"),
        (("export", "{one}", "{tmp}/weights.pth"), "does not end in .safetensors"),
        (("export", "{one}", "{tmp}"), "is a folder"),
        (("ls", "{tmp}/home"), "no checkpoints at"),
        (("ls", "{one}", "/no/such"), "several names must all be folders"),
        (("reshard", "{one}", "{tmp}/x", "--world", "0"), "--world"),
        (("export", "{one}"), "Missing argument"),
    ],
)
def test_what_cannot_be_is_said(ckpt: Command, one: Path, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    (tmp_path / "home").mkdir(exist_ok=True)
    told = ckpt(*(word.format(one=one, tmp=tmp_path) for word in words))
    assert told.code == 2 and said in told.err


def test_an_empty_run_directory(ckpt: Command, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    said = ckpt("ls", tmp_path / "run")
    assert said.code == 0 and "no checkpoints in" in said.err
    assert ckpt("verify", tmp_path / "run").code == 2


# --- runs ------------------------------------------------------------------------------------------------------------


@dataclass
class Remote:
    """A run of two nodes that are reached through their agents only."""

    run_id: str
    nodes: Nodes
    root: Path


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ckpt: Command) -> Remote:
    root = tmp_path / "elsewhere"
    access = NodeAccess("nowhere.invalid", root=str(root), python=sys.executable)
    plans = [node_plan(f"node-{rank}", access, ranks=(2 * rank, 2 * rank + 1), node_rank=rank) for rank in range(2)]
    store = Store()
    run = store.add(make_plan("ssh", plans), "", "")
    store.close()

    def connect(node: NodePlan) -> AgentClient:
        return AgentClient(LocalTransport(node.name), node.access.python, node.access.root)

    monkeypatch.setattr(cluster.backends, "open_backend", lambda plan: NodeBackend("ssh", connect))
    nodes = Nodes(root / "runs" / run.run_id, 2, 4)
    nodes.save(3, 5)
    return Remote(run.run_id, nodes, root)


def test_a_run_elsewhere(ckpt: Command, remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ckpt("ls", remote.run_id, "--json").json["checkpoints"]
    assert [(row["step"], row["whole"], row["nodes"]) for row in rows] == [
        (3, True, ["node-0", "node-1"]),
        (5, True, ["node-0", "node-1"]),
    ]
    monkeypatch.setattr("ostrain.checkpoints._PORTION", 1500)
    out = tmp_path / "m.safetensors"
    assert ckpt("export", "last", out).code == 0
    loaded = safetensors.numpy.load_file(out)
    assert all(loaded[name].tobytes() == tensors(5)["model", name].tobytes() for name in SHAPES)
    # What was fetched is not left behind.
    assert not list((tmp_path / "home" / "cache").rglob("*.safetensors"))
    assert ckpt("diff", remote.run_id, remote.nodes.folder, "--step", 3).code == 0


def test_verify_of_a_run_elsewhere_reads_where_it_lies(ckpt: Command, remote: Remote) -> None:
    assert ckpt("verify", remote.run_id).code == 0
    flip(remote.nodes.path(1) / "step-5" / "shard-00003-of-00004.safetensors")
    said = ckpt("verify", remote.run_id)
    assert said.code == 1
    assert "node-1:checkpoints/step-5/shard-00003-of-00004.safetensors does not have the content" in said.out


def test_a_node_that_does_not_answer(ckpt: Command, remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    call = AgentClient.call

    def silent(self: AgentClient, *arguments: Any, **options: Any) -> dict[str, Any]:
        if self.node == "node-1":
            raise NodeError("unreachable", "the node does not answer", node=self.node)
        return call(self, *arguments, **options)

    monkeypatch.setattr(AgentClient, "call", silent)
    said = ckpt("ls", remote.run_id)
    assert said.code == 4 and "not whole" in said.out and "node node-1" in said.err
    said = ckpt("export", remote.run_id, remote.root / "x.safetensors")
    assert said.code == 1 and "the node does not answer" in said.err


def test_a_local_run(ckpt: Command, tmp_path: Path) -> None:
    store = Store()
    access = NodeAccess("localhost")
    run = store.add(make_plan("local", [node_plan("node-0", access)]), "", "")
    store.close()
    said = ckpt("ls", run.run_id)
    assert said.code == 0 and "no checkpoints in" in said.err
    Nodes(tmp_path / "home" / "state" / "ostrain" / "runs" / run.run_id, 1, 1).save(2)
    assert [row["step"] for row in ckpt("ls", run.run_id, "--json").json["checkpoints"]] == [2]


def test_a_bar_on_a_terminal_for_long_work(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from ostrain.cli.ckpt import _progress

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with _progress("verifying", 1 << 30) as progress:
        progress(1 << 29)
    told = capsys.readouterr()
    assert "verifying" in told.err and told.out == ""


def test_help_imports_neither_numpy_nor_mindspore() -> None:
    import subprocess

    code = (
        "import sys\nsys.argv=['ostrain','ckpt','--help']\nfrom ostrain.__main__ import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "sys.exit(any(n in sys.modules for n in ('numpy', 'mindspore', 'pydantic')))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=REPO, timeout=60, check=False, capture_output=True).returncode
        == 0
    )

"""What is fuzzed: a strategy for each kind of input, and what is done with it."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from models.checkpoint.folder import MANIFEST, look
from models.checkpoint.manifest import BadManifest, Manifest, Shard, _digest
from models.exits import PayloadError
from models.settings import read_config
from ostrain.compiler import compile_plan, config_yaml
from ostrain.errors import OstrainError
from ostrain.ranktable import check, hccn, npu_smi, parse
from ostrain.ranktable.devices import device_list
from ostrain.ranktable.document import decoded
from ostrain.ranktable.facts import node_facts
from ostrain.spec import load_job
from ostrain.spec.document import DocumentError
from ostrain.states import ExitCode
from ostrain.top.temperature import parse as parse_temperatures
from tests.fuzz.damage import changed_bytes, changed_text, changed_value

ROOT = Path(__file__).parents[2]
CODES = {int(code) for code in ExitCode}


@dataclass(frozen=True)
class Target:
    """strategy: input; use: everything that is done with such input. It raises what is not allowed."""

    strategy: st.SearchStrategy[Any]
    use: Callable[[Any], None]


JOB = """name: fuzz
cluster: clusters/c.yaml
nodes: 2
devices_per_node: 2
layout: {sp: 2, sp_kind: dsp, zero: 2}
train:
  recipe: quickstart
  data: {annotations: /data/train.csv, videos: /data, text_embeddings: /data/t5}
  steps: 20
  optimizer: {lr: 1e-4}
env:
  A: "two words"
  B: {expand: "$HOME/x"}
  C: {secret: token}
restart: {max: 3, hang_timeout: 30m}
"""
INVENTORY = """name: c
backend: ssh
device: Ascend
defaults: {user: trainer, devices: [0, 1, 2, 3], device_memory: 64GB, python: /opt/ms/bin/python, root: ~/o}
nodes:
  - {name: node-0, host: 192.0.2.10, port: 22}
  - {name: node-1, address: "2001:db8::1", interface: eth0, env: {X: "1"}}
"""


def _graded(error: OstrainError) -> None:
    """A problem in words: it can be printed anywhere, and its code is one of the table."""
    assert int(error.exit_code) in CODES and int(error.exit_code) not in (0, 70), repr(error)
    assert "Traceback" not in str(error)
    str(error).encode("utf-8", "replace")


def _job(job: str, inventory: str) -> None:
    """Load, compile and render; the folder keeps exactly its two files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "clusters").mkdir()
        (folder / "job.yaml").write_text(job, encoding="utf-8", errors="surrogatepass")
        (folder / "clusters" / "c.yaml").write_text(inventory, encoding="utf-8", errors="surrogatepass")
        before = _contents(folder)
        try:
            plan = compile_plan(load_job(folder / "job.yaml"))
            plan.to_json()
        except OstrainError as error:
            _graded(error)
        assert _contents(folder) == before


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _dump(tree: Any) -> str:
    """YAML of anything, also of what YAML would not write itself."""
    try:
        return yaml.safe_dump(tree, allow_unicode=True, sort_keys=False)
    except (yaml.YAMLError, UnicodeError):
        return json.dumps(tree, default=str, skipkeys=True)


def _config(text: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "train.yaml")
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            read_config(path)
        except PayloadError as error:
            assert 64 <= error.exit_code <= 68 and error.what


def _resolved() -> str:
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "clusters").mkdir()
        (Path(name) / "clusters" / "c.yaml").write_text(INVENTORY)
        (Path(name) / "job.yaml").write_text(JOB)
        loaded = load_job(Path(name) / "job.yaml")
        return config_yaml(loaded.job.config, "fuzz")


def _table(data: bytes) -> None:
    with contextlib.suppress(DocumentError):
        try:
            check(parse(decoded("t.json", data)))
        except OstrainError as error:
            _graded(error)


MANIFEST_GOOD = Manifest(
    7, 2, 1.5, 10, "a" * 64, {"model/w": (4, 2), "ema/w": (8,)},
    (
        Shard("shard-00000-of-00002.safetensors", 20, "b" * 64, ("node-0",), (("model/w", 0, 4), ("ema/w", 0, 8))),
        Shard("shard-00001-of-00002.safetensors", 20, "c" * 64, ("node-1",), (("model/w", 4, 8),)),
    ),
)  # fmt: skip


def _manifest(data: bytes) -> None:
    """A manifest is good or bad; a folder with it is whole or not, and is left as it is."""
    with contextlib.suppress(BadManifest):
        made = Manifest.decode(data)
        made.encode()
        made.size, made.kinds, made.digest  # noqa: B018 - each computes
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / MANIFEST).write_bytes(data)
        look(Path(name), 7)
        assert _contents(Path(name)) == {MANIFEST: data}


def sealed(tree: Any) -> bytes:
    """A changed manifest whose own hash fits again."""
    tree = json.loads(json.dumps(tree, default=str, skipkeys=True))
    if isinstance(tree, dict):
        tree.pop("sha256", None)
        tree["sha256"] = _digest(tree)
    return json.dumps(tree).encode()


def _node(data: bytes) -> None:
    """What npu-smi, hccn_tool and hccn.conf print."""
    text = data.decode("utf-8", "replace")
    npu_smi.joined(npu_smi.parse_info(text)[0], npu_smi.parse_map(text))
    npu_smi.parse_list(text), npu_smi.parse_pod(text), npu_smi.fields(text)
    hccn.merged(hccn.parse_tool(text), hccn.parse_conf(text).get(0, {}).get(0), hccn.parse_gateway(text))
    hccn.first_words(text), parse_temperatures(text)
    for call in (lambda: node_facts("node-0", text), lambda: device_list(text[:40])):
        try:
            call()
        except OstrainError as error:
            _graded(error)


_TRANSCRIPTS = [path.read_bytes() for path in sorted((ROOT / "tests/golden/ranktables").glob("facts*/*.txt"))]
_TABLES = [path.read_bytes() for path in sorted((ROOT / "tests/golden/ranktables").rglob("*.json"))[:30]]
_SEALED = json.loads(MANIFEST_GOOD.encode())
_RESOLVED = _resolved()

TARGETS = {
    "job": Target(changed_text([JOB]), lambda text: _job(text, INVENTORY)),
    "job-values": Target(changed_value([yaml.safe_load(JOB)]).map(_dump), lambda text: _job(text, INVENTORY)),
    "inventory": Target(changed_text([INVENTORY]), lambda text: _job(JOB, text)),
    "inventory-values": Target(changed_value([yaml.safe_load(INVENTORY)]).map(_dump), lambda text: _job(JOB, text)),
    "train.yaml": Target(changed_text([_RESOLVED]), _config),
    "train.yaml-values": Target(changed_value([yaml.safe_load(_RESOLVED)]).map(_dump), _config),
    "ranktable": Target(changed_bytes(_TABLES), _table),
    "node-output": Target(changed_bytes(_TRANSCRIPTS), _node),
    "manifest": Target(changed_bytes([MANIFEST_GOOD.encode()]), _manifest),
    "manifest-values": Target(changed_value([_SEALED]).map(sealed), _manifest),
}

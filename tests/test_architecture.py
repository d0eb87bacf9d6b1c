"""Who may import whom (docs/architecture.md), and that documents point at files that exist."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What the control plane may know of the payload: modules without MindSpore.
SHARED = {
    "models",
    "models.config",
    "models.units",
    "models.recipe",
    "models.cost",
    "models.data.aspect",
    "models.exits",
    "models.settings",
    "models.data.order",
    "models.data.decode",
    "models.data.choosing",
    "models.data.catalogue",
    "models.data.bucket",
    "models.data.annotations",
    "models.data.names",
    "models.files",
    "models.checkpoint",
    "models.checkpoint.folder",
    "models.checkpoint.manifest",
    "models.checkpoint.view",
    "models.checkpoint.read",
    "models.checkpoint.convert",
    "models.checkpoint.compare",
    "models.checkpoint.tensors",
}
NETWORK = {"socket", "paramiko", "fabric", "invoke", "asyncio", "http", "urllib", "requests"}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            if node.module == "models":
                yield from (f"models.{alias.name}" for alias in node.names)


def sources(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, folder
    return found


@pytest.mark.parametrize("path", sources("models"), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_payload_never_imports_the_control_plane(path: Path) -> None:
    assert not [name for name in imports(path) if name.split(".")[0] in ("ostrain", "cluster", "templates", "jobs")]


@pytest.mark.parametrize("path", sources("ostrain") + sources("cluster"), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_control_plane_knows_only_light_modules_of_the_payload(path: Path) -> None:
    names = list(imports(path))
    assert not [name for name in names if name.split(".")[0] in ("mindspore", "numpy")]
    assert not [name for name in names if name.split(".")[0] == "models" and name not in SHARED and
                name.rsplit(".", 1)[0] not in SHARED - {"models"}]  # fmt: skip


@pytest.mark.parametrize("path", sources("ostrain"), ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_cluster_room_touches_the_network(path: Path) -> None:
    assert not [name for name in imports(path) if name.split(".")[0] in NETWORK]


def test_ssh_libraries_stay_in_the_ssh_files() -> None:
    users = [
        path.name for path in sources("cluster") if {"paramiko", "fabric"} & {n.split(".")[0] for n in imports(path)}
    ]
    assert users == ["host_keys.py", "known_hosts.py", "ssh.py", "ssh_errors.py"]


@pytest.mark.parametrize("name", ["agent.py", "inspector.py"])
def test_what_is_sent_to_nodes_needs_nothing_but_python(name: str) -> None:
    foreign = {one.split(".")[0] for one in imports(ROOT / "cluster" / name)} - set(sys.stdlib_module_names)
    assert not foreign


@pytest.mark.parametrize(
    "path",
    sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]),
    ids=lambda p: p.name,
)
def test_links_and_named_files_exist(path: Path) -> None:
    text = path.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (path.parent / target).exists(), target
    for named in re.findall(
        r"`((?:docs|jobs|models|ostrain|cluster|templates|tests|bench|tools)/[\w./-]+\.\w+)`", text
    ):
        assert (ROOT / named).exists(), named


def test_files_stay_readable() -> None:
    # Agent and inspector have to be one file each: they are copied to nodes as such.
    long = {str(p.relative_to(ROOT)): n for folder in ("ostrain", "cluster", "models") for p in sources(folder)
            if (n := len(p.read_text().splitlines())) > 500 and p.name not in ("agent.py", "inspector.py")}  # fmt: skip
    assert not long

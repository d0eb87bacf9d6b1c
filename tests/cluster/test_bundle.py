"""Archives: the same content gives the same bytes, and what cannot travel is refused."""

from __future__ import annotations

import os
import tarfile
import time
from pathlib import Path

import pytest

from cluster.bundle import build_bundle, build_source, hash_file
from ostrain.errors import OstrainError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ostrain"


def make_tree(folder: Path, order: int = 1) -> Path:
    folder.mkdir()
    for name in ["b", "a", "漢字", "x y"][::order]:
        (folder / name).write_text(name)
        os.utime(folder / name, (order % 7, time.time()))
    (folder / "deep").mkdir()
    (folder / "deep" / "link").symlink_to("../a")
    (folder / "deep" / "__pycache__").mkdir()
    (folder / "deep" / "__pycache__" / "junk.pyc").write_text("junk")
    return folder


def test_times_owners_and_order_do_not_matter(tmp_path: Path) -> None:
    one, two = build_source(make_tree(tmp_path / "one")), build_source(make_tree(tmp_path / "two", -1))
    assert one == two and hash_file(one) in one.name
    (tmp_path / "two" / "a").write_text("other")
    assert build_source(tmp_path / "two") != one


def test_the_content_of_a_source(tmp_path: Path) -> None:
    with tarfile.open(build_source(make_tree(tmp_path / "one"))) as tar:
        assert tar.getnames() == [
            "content",
            *(f"content/{name}" for name in ["a", "b", "deep", "deep/link", "x y", "漢字"]),
        ]
        assert {(m.mtime, m.uid, m.gid, m.uname) for m in tar.getmembers()} == {(0, 0, 0, "")}


def test_a_source_may_be_a_file_or_a_link_to_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    assert build_source(tmp_path / "file") == build_source(tmp_path / "link")


@pytest.mark.parametrize("target", ["/etc/passwd", "../../secret"])
def test_links_that_lead_out_are_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "l").symlink_to(target)
    with pytest.raises(OstrainError, match="leads out of its folder"):
        build_source(tmp_path / "d")
    assert not list((tmp_path / "cache").rglob("*tar.gz")) and not list((tmp_path / "cache").rglob(".tmp-*"))


def test_pipes_and_missing_sources_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OstrainError, match="neither a file"):
        build_source(tmp_path / "pipe")
    with pytest.raises(OstrainError, match="does not exist"):
        build_source(tmp_path / "nothing")


def test_the_bundle_holds_models_and_the_agent(cache: Path) -> None:
    path = build_bundle()
    assert path == build_bundle() and path.parent == cache / "archives"
    with tarfile.open(path) as tar:
        names = tar.getnames()
    assert {"agent.py", "models/__init__.py", "models/config/train.py"} <= set(names)
    assert not [name for name in names if "__pycache__" in name]

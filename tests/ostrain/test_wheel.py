"""A wheel built from the tree, installed in an environment without the checkout, finds everything it needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("ostrain", "cluster", "models", "templates", "jobs")


def run(*command: str, cwd: Path) -> str:
    env = {"PATH": os.environ["PATH"], "HOME": str(cwd), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: a build leaves its folders behind."""
    copy = tmp_path_factory.mktemp("tree")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("*.toml"), *ROOT.glob("*.md"), *ROOT.glob("*.in")):
        shutil.copy(path, copy)
    out = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "wheel", *options, "-w", str(out), str(copy), cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a fresh environment that holds the wheel, and sees third-party packages but not the checkout."""
    folder = tmp_path_factory.mktemp("env")
    run(sys.executable, "-m", "venv", "--without-pip", str(folder), cwd=folder)
    own = folder / "bin/python"
    options = ("--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", str(own), "install", *options, str(wheel), cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A folder named in a .pth file is searched, but its own .pth files (an editable install's) are not read.
    (packages / "third_party.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    return own


def test_the_wheel_holds_templates_jobs_and_recipes(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in PACKAGES:
        for path in (ROOT / name).rglob("*"):
            if path.suffix in (".j2", ".yaml", ".mp4", ".csv", ".npz", ".py") and "__pycache__" not in path.parts:
                assert str(path.relative_to(ROOT)) in names
    assert not [name for name in names if name.startswith(("tests/", "docs/", "build/"))]


def test_installed_ostrain_renders_bundled_jobs_from_anywhere(python: Path, tmp_path: Path) -> None:
    where = run(str(python), "-c", "import ostrain; print(ostrain.__file__)", cwd=tmp_path)
    assert str(python.parents[1]) in where and str(ROOT) not in where
    text = run(str(python.parent / "ostrain"), "render", "os12_stage3", cwd=tmp_path)
    assert "--worker_num=16" in text and "═══ train.yaml" in text
    text = run(str(python), "-m", "ostrain", "render", "quickstart", "-o", "out", cwd=tmp_path)
    assert sorted(path.name for path in (tmp_path / "out/local").iterdir()) == ["env.sh", "launch.sh", "train.yaml"]
    assert "quickstart" in run(str(python.parent / "ostrain"), "schema", cwd=tmp_path)


def test_bundled_clips_are_where_the_installed_job_says(python: Path, tmp_path: Path) -> None:
    script = "from ostrain.spec import *; from pathlib import Path; j = load_job(Path('quickstart')); "
    script += "print(*check_runnable(j), j.sources['clips'])"
    clips = Path(run(str(python), "-c", script, cwd=tmp_path).strip())
    assert (clips / "train.csv").is_file() and str(ROOT) not in str(clips)

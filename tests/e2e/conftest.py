"""Running the real command line on real jobs, each test in a home of its own with an awkward name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "jobs" / "quickstart.yaml"
# The quick start's job, small enough for a step of a few hundredths of a second.
SMALL = (
    "train.model.hidden_size=32",
    "train.model.depth=1",
    "train.model.num_heads=2",
    "train.data.image_size=[16, 24]",
    "train.data.num_frames=4",
    "train.log.tensorboard=false",
    "train.jit=off",
)


class Cli:
    """``ostrain`` as a user runs it, in a subprocess."""

    def __init__(self, environment: dict[str, str], folder: Path, pause: float = 0.5) -> None:
        self.environment = environment
        self.folder = folder
        # Seconds between two looks: asking costs the cores that the workers need.
        self.pause = pause
        self._children: list[subprocess.Popen[bytes]] = []

    def __call__(self, *words: str, code: int = 0, timeout: float = 180) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "ostrain", *words],
            capture_output=True, text=True, timeout=timeout, env=self.environment, cwd=self.folder, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"exit {done.returncode}, not {code}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def start(self, *words: str, stdout: Any = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [sys.executable, "-m", "ostrain", *words],
            stdout=stdout, stderr=subprocess.PIPE, env=self.environment, cwd=self.folder,
        )  # fmt: skip
        self._children.append(child)
        return child

    def submit(self, *settings: str, job: Path = QUICKSTART, small: bool = True) -> str:
        """Submit and return the run id."""
        words = [word for one in (*(SMALL if small else ()), *settings) for word in ("--set", one)]
        return self("submit", str(job), *words).stdout.strip().splitlines()[0]

    def status(self, run: str) -> dict[str, Any]:
        """``status --json``, whatever state it tells of."""
        done = subprocess.run(
            [sys.executable, "-m", "ostrain", "status", run, "--json"],
            capture_output=True, text=True, timeout=60, env=self.environment, cwd=self.folder, check=False,
        )  # fmt: skip
        assert done.stdout, done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    def wait(self, run: str, until: Callable[[dict[str, Any]], bool], timeout: float = 120) -> dict[str, Any]:
        """Ask for the status until it is as wanted."""
        end = time.monotonic() + timeout
        while not until(told := self.status(run)):
            assert time.monotonic() < end, f"not within {timeout} s: {json.dumps(told)[:3000]}"
            time.sleep(self.pause)
        return told

    def stop_children(self) -> None:
        for child in self._children:
            if child.poll() is None:
                child.kill()
            child.communicate(timeout=20)


def step_of(told: dict[str, Any]) -> int:
    return int((told["progress"] or {"step": 0})["step"])


def worker_pid(told: dict[str, Any], rank: int) -> int:
    return next(one["pid"] for node in told["nodes"].values() for one in node["workers"] if one["rank"] == rank)


def losses(run_dir: Path) -> dict[int, tuple[float, float]]:
    """step -> (loss, gradient norm) as the last attempt saw them."""
    from ostrain.report import by_step

    lines = (run_dir / "metrics" / "rank-0.jsonl").read_text().splitlines()
    return {row["step"]: (row["loss"], row["grad_norm"]) for row in by_step(map(json.loads, lines))}


def processes_of(run: str) -> list[int]:
    """Every process on this machine that carries the run's tag."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"OSTRAIN_RUN={run}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    home = tmp_path / "ho me 'q' $(x) ü"
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "OSTRAIN_", "MS_"))}
    environment |= {
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    made = Cli(environment, tmp_path)
    yield made
    made.stop_children()
    leftovers = [pid for run in _runs(home) for pid in processes_of(run)]
    for pid in leftovers:
        os.kill(pid, signal.SIGKILL)
    assert not leftovers, "a test left processes of its runs behind"


def _runs(home: Path) -> list[str]:
    return [path.name for path in (home / ".local/state/ostrain/runs").glob("*")]


def run_dir(cli: Cli, run: str, node: str = "local") -> Path:
    return Path(cli.environment["HOME"]) / ".local/state/ostrain/runs" / run / node

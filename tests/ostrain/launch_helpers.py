"""Launch files run with real bash, Open MPI and node agent; the workers only write down what they see."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ostrain.plan import NodePlan

ROOT = Path(__file__).parents[2]
# A payload that tells its environment, its cores, and the command lines of everything above it. END says how it ends:
# `2/66` exits with 66 on rank 2, `*/wait` waits for a signal on all.
TOY = """
import json, os, sys, time
def above(pid):
    while pid > 1:
        words = open(f"/proc/{pid}/cmdline").read().split("\\0")
        yield words
        pid = int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
who = "scheduler" if os.environ.get("MS_ROLE") == "MS_SCHED" else os.environ["RANK_ID"]
told = {"environ": {os.fsdecode(k): os.fsdecode(v) for k, v in os.environb.items()}, "argv": sys.argv[1:],
        "cwd": os.getcwd(), "cores": sorted(os.sched_getaffinity(0)), "above": list(above(os.getppid()))}
path = os.environ["OSTRAIN_RUN_DIR"] + f"/seen-{who}.json"
with open(path + ".part", "w") as file:
    json.dump(told, file)
os.rename(path + ".part", path)
print("hello from", who, flush=True)
rank, _, end = os.environ.get("END", "/").partition("/")
if end == "wait" or (rank not in ("", who) and who != "scheduler"):
    time.sleep(60)
sys.exit(int(end) if rank == who else 0)
"""


@dataclass
class ToyNode:
    """A run directory with a node's files, and a code bundle whose payload is the toy."""

    folder: Path

    def __post_init__(self) -> None:
        self.run_dir, self.bundle = self.folder / "run dir", self.folder / "bundle"
        (self.bundle / "models").mkdir(parents=True)
        self.run_dir.mkdir()
        (self.bundle / "models/__init__.py").write_text("")
        (self.bundle / "models/train.py").write_text(TOY)

    def stage(self, node: NodePlan) -> None:
        for file in node.files:
            (self.run_dir / file.path).write_text(file.text, encoding="utf-8")
            (self.run_dir / file.path).chmod(file.mode)

    def start(self, **env: str) -> subprocess.Popen[str]:
        base = {
            "PATH": f"{self.folder}/bin:{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
            "OSTRAIN_BUNDLE": str(self.bundle),
            "OSTRAIN_AGENT": str(ROOT / "cluster/agent.py"),
            "OSTRAIN_MASTER_PORT": "20999",
            "OSTRAIN_ATTEMPT": "3",
        }
        return subprocess.Popen(
            ["bash", str(self.run_dir / "launch.sh")],
            env=base | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/",
        )  # fmt: skip

    def launch(self, code: int = 0, **env: str) -> tuple[str, str]:
        """Run launch.sh to its end; its output and messages."""
        process = self.start(**env)
        out, errors = process.communicate(timeout=60)
        assert process.returncode == code, f"{process.returncode}\n{out}\n{errors}\n{self.logs()}"
        return out, errors

    def logs(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in sorted(self.run_dir.glob("logs/attempt-3/*.log"))}

    def seen(self) -> dict[str, dict[str, Any]]:
        """What every process told, by rank or ``scheduler``."""
        paths = self.run_dir.glob("seen-*.json")
        return {path.stem.removeprefix("seen-"): json.loads(path.read_text()) for path in sorted(paths)}

    def environ(self, who: str) -> dict[str, str]:
        environ: dict[str, str] = self.seen()[who]["environ"]
        return environ

    def records(self) -> dict[str, dict[str, Any]]:
        """The wrappers' records."""
        paths = self.run_dir.glob("workers/attempt-3/*.json")
        return {path.stem: json.loads(path.read_text()) for path in sorted(paths)}

    def program(self, name: str, script: str) -> None:
        """A program that stands first on the node's PATH."""
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(script)
        path.chmod(0o755)


def pids_of(run_dir: Path) -> list[int]:
    """Live processes whose environment names the run directory."""
    tag, found = f"OSTRAIN_RUN_DIR={run_dir}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if tag in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:  # it ended meanwhile
            continue
    return [pid for pid in found if pid != os.getpid()]

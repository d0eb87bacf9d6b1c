"""A cloud for tests: both stand-ins, keys in the environment, an inventory, a job whose workers are toys."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.cluster.cloud_server import ACCESS_KEY, SECRET_KEY, served
from tests.cluster.modelarts_service import PROJECT, ModelArtsService
from tests.cluster.obs_service import BUCKET, ObsService
from tests.ostrain.spec_helpers import TRAIN

# In place of msrun: the same workers with the same variables, but each runs toy.py.
MSRUN = """#!{python}
import os, subprocess, sys
options = dict(one[2:].split("=", 1) for one in sys.argv[1:] if one.startswith("--") and "=" in one)
rest = sys.argv[1 + sum(one.startswith("--") and "=" in one for one in sys.argv[1:]):]
command = rest[: rest.index("--") + 1] + [{python!r}, {toy!r}]
count, first = int(options["local_worker_num"]), int(options["node_rank"]) * int(options["local_worker_num"])
assert "RANK_TABLE_FILE" not in os.environ and options["master_addr"] in ("127.0.0.1", "::1"), options
def start(rank):
    env = dict(os.environ, RANK_ID=str(rank), RANK_SIZE=options["worker_num"], MS_ROLE="MS_WORKER")
    log = open(os.path.join(options["log_dir"], "worker_%d.log" % rank), "wb")
    return subprocess.Popen([{python!r}, *command[1:]], env=env, stdout=log, stderr=log)
workers = [start(rank) for rank in range(first, first + count)]
sys.exit(max(worker.wait() for worker in workers))
"""
# A training of six steps with a checkpoint at the fourth; goes on from it. STOP_AT: ends with 65 before that step.
TOY = """
import json, os, time
rank, run = int(os.environ["RANK_ID"]), os.environ["OSTRAIN_RUN_DIR"]
path = os.path.join(run, "checkpoints", "step-4")
begin = 5 if os.path.exists(path + "/manifest.json") else 1
print("rank %d begins at step %d with token %s" % (rank, begin, len(os.environ.get("TOKEN", ""))), flush=True)
for step in range(begin, 7):
    if os.path.exists(os.environ["TOYS"] + "/hold"):
        while os.path.exists(os.environ["TOYS"] + "/hold"):
            time.sleep(0.05)
    attempt = int(os.environ["OSTRAIN_ATTEMPT"])
    if attempt == 1 and rank == 1 and os.path.exists(os.environ["TOYS"] + "/break-%d" % step):
        print("broken", flush=True); raise SystemExit(65)
    with open(os.path.join(run, "metrics", "rank-%d.jsonl" % rank), "a") as file:
        line = {"step": step, "steps": 6, "loss": 1.0 / step, "time": time.time(), "attempt": attempt}
        file.write(json.dumps(line) + "\\n")
    print("rank %d step %d" % (rank, step), flush=True)
    if step == 4 and rank % 2 == 0:
        os.makedirs(path, exist_ok=True)
        open(path + "/shard-%d.safetensors" % rank, "wb").write(b"weights" * 1000)
        open(path + "/manifest.json", "w").write("{}")
    time.sleep(0.05)
"""
INVENTORY = """name: cloud
backend: modelarts
device: CPU
defaults: {{devices: 8, python: {python}, root: {root}, env: {{TOYS: "{toys}"}}}}
modelarts:
  region: cn-southwest-2
  project_id: {project}
  pool_id: pool-1
  flavor_id: modelarts.pool.visual.8xlarge
  image: org/mindspore:2.10
  obs: obs://{bucket}/ostrain
  endpoint: {modelarts}
  obs_endpoint: {obs}
  sync: 1s
  wait: 5s
{more}"""


@dataclass
class Cloud:
    folder: Path
    obs: ObsService
    jobs: ModelArtsService

    @property
    def toys(self) -> Path:
        return self.folder / "toys"

    def inventory(self, more: str = "", **changes: str) -> Path:
        values = {
            "python": f"{self.toys}/python", "root": f"{self.folder}/root", "toys": str(self.toys), "project": PROJECT,
            "bucket": BUCKET, "modelarts": self.jobs.url, "obs": self.obs.url, "more": more, **changes,
        }  # fmt: skip
        path = self.folder / "clusters" / "cloud.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(INVENTORY.format(**values))
        return path

    def job(self, text: str = "", nodes: int = 2) -> Path:
        path = self.folder / "job.yaml"
        path.write_text(f"name: toy.job\ncluster: cloud\nnodes: {nodes}\ndevices_per_node: 2\n{text}{TRAIN}")
        return path

    def ostrain(self, *arguments: str) -> Result:
        """A command of the command line, in this process."""
        from ostrain.cli import cli

        return CliRunner().invoke(cli, list(arguments), standalone_mode=False)

    def hold_workers(self, held: bool = True) -> None:
        path = self.toys / "hold"
        path.touch() if held else path.unlink(missing_ok=True)

    def assert_well_asked(self) -> None:
        """Every request was signed and shaped as documented."""
        assert self.jobs.problems == [] and self.obs.problems == []


@contextmanager
def opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    for name, value in (
        ("OSTRAIN_SECRET_MODELARTS_ACCESS_KEY", ACCESS_KEY),
        ("OSTRAIN_SECRET_MODELARTS_SECRET_KEY", SECRET_KEY),
        ("OSTRAIN_MODELARTS_POLL", "0.1"),
        ("XDG_STATE_HOME", str(folder / "state")),
        ("XDG_CACHE_HOME", str(folder / "cache")),
        ("XDG_CONFIG_HOME", str(folder / "config")),
    ):
        monkeypatch.setenv(name, value)
    obs = ObsService()
    jobs = ModelArtsService(obs, folder / "containers")
    with served(obs), served(jobs):
        cloud = Cloud(folder, obs, jobs)
        cloud.toys.mkdir()
        (cloud.toys / "toy.py").write_text(TOY)
        (cloud.toys / "msrun").write_text(MSRUN.format(python=sys.executable, toy=str(cloud.toys / "toy.py")))
        (cloud.toys / "msrun").chmod(0o755)
        (cloud.toys / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (cloud.toys / "python").chmod(0o755)
        cloud.inventory()
        try:
            yield cloud
        finally:
            cloud.hold_workers(False)
            jobs.close()
            os.environ.pop("TOKEN", None)

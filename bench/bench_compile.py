"""Compiling jobs of many nodes: job, inventory and facts read, rank table made and checked, every launch file rendered.

``python -m bench compile`` (or ``python -m bench.bench_compile --nodes 1280``). JSON lines: processor seconds (others
may use the machine) of each step at a quarter, at half and at all of the nodes, median and spread of several runs, each
with cold caches; by how much more than the nodes the whole grows (1 where time is linear); the peak memory, of a
process of its own; and beside them, on the same nodes, what merge_hccl.py does with one file a node: load, number anew,
write.

"all" is what one job costs: its files read, its rank table made and checked, and the launch files of every launcher.
Exits with 1 if that takes 2 s or 500 MB, or if time grows by more than twice as much as the nodes.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.bench_ranktable import made, merged, say, transcript
from ostrain.compiler import compile_plan
from ostrain.plan import LaunchPlan
from ostrain.ranktable.walk import address
from ostrain.spec import load_job
from ostrain.spec.load import LoadedJob

SECONDS, MEGABYTES, GROWTH = 2.0, 500, 2.0
DEVICES = 8
LAUNCHERS = ("msrun", "mpirun", "rank_table")
JOB = """name: large
cluster: large
nodes: {nodes}
devices_per_node: {devices}
launcher: rank_table
env: {{HCCL_BUFFSIZE: "400", HF_TOKEN: {{secret: hf}}}}
train:
  recipe: opensora_v1_2/stage3
  data: {{annotations: /data/train.csv, videos: /data, text_embeddings: /data/text}}
"""
INVENTORY = """name: large
device: Ascend
facts: facts
defaults: {{devices: {devices}, python: /opt/ms/bin/python, interface: eth0, setup: [/opt/set_env.sh]}}
nodes:
"""


def write(folder: Path, nodes: int) -> Path:
    """A job of that many nodes with its inventory and what the nodes said of their devices."""
    facts = folder / "clusters" / "facts"
    facts.mkdir(parents=True)
    listed = []
    for node in range(nodes):
        (facts / f"n{node}.txt").write_text(transcript(node, DEVICES))
        listed.append(f"  - {{name: n{node}, host: 172.16.{node // 250}.{node % 250 + 1}}}\n")
    (folder / "clusters" / "large.yaml").write_text(INVENTORY.format(devices=DEVICES) + "".join(listed))
    (folder / "job.yaml").write_text(JOB.format(nodes=nodes, devices=DEVICES))
    return folder / "job.yaml"


def compiled(loaded: LoadedJob, launcher: str) -> LaunchPlan:
    """The plan with all files of all nodes."""
    job = loaded.job.model_copy(update={"launcher": launcher})
    plan = compile_plan(replace(loaded, job=job, rank_table=loaded.rank_table if launcher == "rank_table" else None))
    assert plan.nodes[-1].ranks[-1] == plan.world - 1
    return plan


def once(job: Path) -> dict[str, float]:
    """Processor seconds of every step, once, with cold caches."""
    address.cache_clear()
    began = time.process_time()
    loaded = load_job(job)
    times = {"read, make and check the table": time.process_time() - began}
    for launcher in LAUNCHERS:
        began = time.process_time()
        compiled(loaded, launcher)
        times[f"compile for {launcher}"] = time.process_time() - began
    return times


def measure(nodes: int, runs: int) -> float:
    """Prints every step at ``nodes`` nodes; seconds of all of them."""
    with tempfile.TemporaryDirectory() as name:
        job = write(Path(name), nodes)
        taken = [once(job) for _ in range(runs)]
        all_of_it = [sum(times.values()) for times in taken]
        for step in taken[0]:
            tell(nodes, step, [times[step] for times in taken])
        return tell(nodes, "all", all_of_it)


def tell(nodes: int, step: str, seconds: list[float]) -> float:
    median = statistics.median(seconds)
    say(what=step, nodes=nodes, ranks=nodes * DEVICES, seconds=median, spread=max(seconds) - min(seconds))
    return median


def merge_seconds(nodes: int) -> float:
    """What merge_hccl.py takes for the table alone, without a look at what it merges."""
    with tempfile.TemporaryDirectory() as name:
        for node in range(nodes):
            (Path(name) / f"{node:06d}.json").write_text(made([transcript(node, DEVICES)]))
        began = time.process_time()
        merged(Path(name))
        return time.process_time() - began


def as_submitted(job: Path) -> str:
    """What a submit keeps: the plan with the rank table as JSON for the store."""
    return compile_plan(load_job(job)).to_json()


PEAKS: dict[str, Callable[[Path], Any]] = {"all": once, "plan as JSON": as_submitted}


def peak(what: str, job: Path) -> float:
    """Peak memory in MB of a fresh process that does it."""
    command = [sys.executable, "-m", "bench.bench_compile", "--peak", what, "--job", str(job)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1280)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--peak", choices=sorted(PEAKS), help=argparse.SUPPRESS)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        PEAKS[options.peak](options.job)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return 0
    sizes = [max(1, options.nodes // part) for part in (4, 2, 1)]
    few, _, many = [measure(nodes, options.runs) for nodes in sizes]
    with tempfile.TemporaryDirectory() as name:
        job = write(Path(name), options.nodes)
        memory, stored = peak("all", job), peak("plan as JSON", job)
        size = len(as_submitted(job)) / 2**20
        say(what="plan as JSON", nodes=options.nodes, megabytes_of_text=size, megabytes=stored)
    growth = many / few / (sizes[2] / sizes[0])
    ratio = many / merge_seconds(options.nodes)
    say(what="all", nodes=options.nodes, ranks=options.nodes * DEVICES, seconds=many, growth=growth, megabytes=memory,
        ratio=ratio, ratio_to="merge_hccl's steps: the table alone, unchecked")  # fmt: skip
    return int(many >= SECONDS or memory >= MEGABYTES or growth > GROWTH)


if __name__ == "__main__":
    raise SystemExit(main())

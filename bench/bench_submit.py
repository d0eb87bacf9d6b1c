"""Submit on many nodes: connect, push the code, start and verify the agents, beside ``pdsh`` and ``parallel-ssh``
running ``true`` on the same nodes in the same run.

``python -m bench submit`` (or ``python -m bench.bench_submit --nodes 32 --runs 5``). Needs root (the nodes are network
namespaces of this machine, tests/testbed) and the Debian packages pdsh and pssh. All take turns; every turn of ours
uses a new client, so it connects anew. ``first`` is on nodes that have never been used: the agent and the code travel,
too; ``next`` is every later submit, where they are there by content hash. JSON lines: median and spread of the wall
time, seconds of processor time of the client itself, and the ratio to ``pdsh``.

Exits with 1 if the submit of ours takes longer than ``pdsh`` running ``true``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster import backends
from cluster.backend import NodeError, RunRef
from cluster.bundle import build_bundle
from ostrain.plan import LaunchPlan, NodeAccess, NodePlan, PlanFile
from tests.testbed import Testbed

GOAL = 1.0  # times pdsh


def plan(bed: Testbed) -> LaunchPlan:
    """A run whose launcher only waits: what is measured is ours, not MindSpore's."""
    nodes = tuple(
        NodePlan(
            node.name, number, NodeAccess(node.name, python=sys.executable), node.address, (), (), ("sleep", "600"),
            (PlanFile("train.yaml", "steps: 1\n" * 100), PlanFile("launch.sh", "exec sleep 600\n" * 50, 0o755)),
        )
        for number, node in enumerate(bed.nodes)
    )  # fmt: skip
    return LaunchPlan("bench", "ssh", "msrun", "CPU", {}, 0, bed.nodes[0].address, 0, 1, nodes)


def good(answers: dict[str, Any]) -> dict[str, Any]:
    for answer in answers.values():
        if isinstance(answer, NodeError):
            raise answer
    return answers


def submit(launch: LaunchPlan, name: str, bundle: Path) -> dict[str, float]:
    """Seconds of each phase of a submit by a client that has no connection yet. The run is ended afterwards."""
    backend = backends.get("ssh")
    run = RunRef(name, launch)
    phases: dict[str, float] = {}
    began = last = time.perf_counter()
    for phase, call in (
        ("stage", lambda: backend.stage(run, bundle)),
        ("start", lambda: backend.start(run, 1, {})),
        ("verify", lambda: backend.poll(run)),
    ):
        answers = good(call())
        now = time.perf_counter()
        phases[phase], last = now - last, now
    phases["all"] = last - began
    assert all(answer["state"] == "RUNNING" and answer["agent"]["alive"] for answer in answers.values())
    good(backend.stop(run, grace=1.0))
    good(backend.remove(run))
    backend.close()
    return phases


def others(bed: Testbed, folder: Path) -> dict[str, list[str]]:
    """The commands beside which we stand; the same strict host keys, from the same ~/.ssh/config."""
    missing = [name for name in ("pdsh", "parallel-ssh") if shutil.which(name) is None]
    if missing:
        raise SystemExit(f"missing: {', '.join(missing)}; apt-get install -y pdsh pssh")
    names = [node.name for node in bed.nodes]
    (folder / "hosts").write_text("".join(f"{name}\n" for name in names))
    config = f"{bed.home}/.ssh/config"
    width = str(len(names))
    return {
        "pdsh": ["pdsh", "-R", "ssh", "-f", width, "-w", ",".join(names), "true"],
        "parallel-ssh": ["parallel-ssh", "-h", str(folder / "hosts"), "-p", width, "-x", f"-F {config}", "true"],
    }


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Wall time, and processor time of this process and its children."""
    before = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    began = time.perf_counter()
    call()
    wall = time.perf_counter() - began
    after = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    used = sum(b.ru_utime + b.ru_stime - a.ru_utime - a.ru_stime for a, b in zip(before, after, strict=True))
    return wall, used


def say(**values: Any) -> None:
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in values.items()}), flush=True)


def command(words: list[str], bed: Testbed) -> None:
    environment = {**os.environ, "PDSH_SSH_ARGS_APPEND": f"-F {bed.home}/.ssh/config -o BatchMode=yes"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0 or "Permission denied" in done.stderr:
        raise SystemExit(f"{words[0]} failed: {done.stderr[-500:]}")


def measure(bed: Testbed, runs: int, folder: Path) -> int:
    launch, bundle, commands = plan(bed), build_bundle(), others(bed, folder)
    walls: dict[str, list[float]] = {}
    used: dict[str, list[float]] = {}
    phases: list[dict[str, float]] = []
    began = time.process_time()
    first = submit(launch, "first", bundle)
    nodes = len(bed.nodes)
    say(what="ostrain, first submit", nodes=nodes, seconds=first["all"], client_cpu=time.process_time() - began, **{
        phase: first[phase] for phase in ("stage", "start", "verify")})  # fmt: skip
    for number in range(runs):
        for name, words in commands.items():
            wall, cpu = timed(lambda words=words: command(words, bed))
            walls.setdefault(name, []).append(wall)
            used.setdefault(name, []).append(cpu)
        one: dict[str, float] = {}
        _, cpu = timed(lambda number=number, one=one: one.update(submit(launch, f"run-{number}", bundle)))
        phases.append(one)
        walls.setdefault("ostrain", []).append(one["all"])
        used.setdefault("ostrain", []).append(cpu)
    base = statistics.median(walls["pdsh"])
    for name, times in walls.items():
        median = statistics.median(times)
        say(what=name, nodes=nodes, seconds=median, spread=[round(min(times), 3), round(max(times), 3)],
            cpu=statistics.median(used[name]), ratio_to_pdsh=median / base)  # fmt: skip
    say(what="ostrain, phases", **{name: statistics.median(one[name] for one in phases) for name in phases[0]})
    return int(statistics.median(walls["ostrain"]) > GOAL * base)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=32)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Testbed(options.nodes) as bed:
        os.environ.update(bed.environment())
        return measure(bed, options.runs, Path(name))


if __name__ == "__main__":
    sys.exit(main())

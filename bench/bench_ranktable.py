"""Rank tables of many nodes: from the nodes' answers to a table, and the check of it.

``python -m bench ranktable`` (or ``python -m bench.bench_ranktable --nodes 1280``). JSON lines: each step's processor
seconds (others may use the machine) at an eighth of the nodes and at all of them, median and spread of several runs,
each with cold caches; by how much more than the nodes they grow (1 where time is linear); the peak memory; and beside
them, on the same nodes, what merge_hccl.py does with one file a node: load, number anew, write. That checks nothing.

Exits with 1 if making and checking the large table take 2 s or 500 MB, or if time grows by more than twice as much as
the nodes.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ostrain.ranktable import check, parse
from ostrain.ranktable.facts import node_facts
from ostrain.ranktable.make import Wanted, make
from ostrain.ranktable.text import table_text
from ostrain.ranktable.walk import address
from ostrain.spec.problems import Source

SECONDS, MEGABYTES, GROWTH = 2.0, 500, 2.0
STEPS = 8


def transcript(node: int, devices: int) -> str:
    """What a node of an A2 cluster answers."""
    lines = ["$ hostname -I", f"172.16.{node // 250}.{node % 250 + 1}", "$ cat /etc/hccn.conf"]
    answers = []
    for device in range(devices):
        number = node * devices + device
        ip = f"10.{20 + number // 62500}.{number // 250 % 250}.{number % 250 + 1}"
        lines += [f"address_{device}={ip}", f"netmask_{device}=255.0.0.0", f"gateway_{device}=10.0.0.1"]
        answers += [f"$ hccn_tool -i {device} -ip -g", f"ipaddr:{ip}", "netmask:255.0.0.0"]
    return "\n".join(lines + answers) + "\n"


def made(texts: list[str]) -> str:
    """From answers to the table's text."""
    result = make([node_facts(f"node-{number}", text) for number, text in enumerate(texts)], Wanted())
    assert result.data is not None, result.complaints[:3]
    return table_text(result.data)


def checked(text: str) -> None:
    """From text to a verdict."""
    report = check(parse(Source("table.json", text)))
    assert report.good and not report.findings.all


def merged(folder: Path) -> None:
    """The steps of merge_hccl.py."""
    servers: list[Any] = []
    rank = 0
    for path in sorted(folder.glob("*.json")):
        for server in json.loads(path.read_text())["server_list"]:
            for device in server["device"]:
                device["rank_id"] = rank
                rank += 1
            servers.append(server)
    table = {"version": "1.0", "server_count": str(len(servers)), "server_list": servers, "status": "completed"}
    with (folder / "merged").open("w") as file:
        json.dump(table, file, indent=4)


def seconds(call: Callable[[], object], runs: int) -> tuple[float, float]:
    """Median and spread (largest less smallest) of several runs."""
    times = []
    for _ in range(runs):
        address.cache_clear()
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    return statistics.median(times), max(times) - min(times)


def say(**values: Any) -> None:
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}), flush=True)


def measure(nodes: int, devices: int, runs: int) -> dict[str, float]:
    """Seconds of every step at ``nodes`` nodes."""
    texts = [transcript(node, devices) for node in range(nodes)]
    table = made(texts)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for node, text in enumerate(texts):
            (folder / f"{node:06d}.json").write_text(made([text]))
        steps: dict[str, Callable[[], object]] = {
            "make": lambda: made(texts), "check": lambda: checked(table), "merge_hccl's steps": lambda: merged(folder)
        }  # fmt: skip
        for step, call in steps.items():
            median, spread = seconds(call, runs)
            say(what=step, nodes=nodes, ranks=nodes * devices, seconds=median, spread=spread)
            found[step] = median
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1280)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    small = measure(max(1, options.nodes // STEPS), options.devices, options.runs)
    large = measure(options.nodes, options.devices, options.runs)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ours = large["make"] + large["check"]
    growth = ours / (small["make"] + small["check"]) / STEPS
    say(what="make and check", seconds=ours, growth=growth, ratio=ours / large["merge_hccl's steps"], megabytes=memory)
    return int(ours >= SECONDS or memory >= MEGABYTES or growth > GROWTH)


if __name__ == "__main__":
    sys.exit(main())

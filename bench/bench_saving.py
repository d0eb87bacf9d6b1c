"""What saving costs training: blocks of steps with a checkpoint in each, beside blocks without, in the same run.

``python -m bench saving`` (or ``python -m bench.bench_saving`` with options). Blocks take turns, so that noise of the
machine hits both alike. A block with saving takes the snapshot before its first step, and ends when the checkpoint is
committed: what the writer has not done by then counts as waiting. JSON lines: one for each kind of block (wall seconds
a step: median, smallest, largest; processor seconds of rank 0's threads), one for the checkpoints (bytes, seconds to
commit, milliseconds that training was held up), and the verdict: how much longer steps took with saving, over all
blocks and as the median of neighbours.

Exits with 1 if saving costs 5 % of the step time or more.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from models.parallel.world import host_threads, is_scheduler, launcher_size

LIMIT = 0.05
WARM_UP = 3
LR = 1e-5


def settings(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "model": {
            "in_channels": 3, "patch_size": [1, 4, 4], "hidden_size": options.hidden, "depth": options.depth,
            "num_heads": 4, "pred_sigma": False, "caption_channels": 64, "model_max_length": 20, "input_sq_size": 64,
        },
        "autoencoder": {"type": "identity"},
        "diffusion": {"use_timestep_transform": False},
        "dtype": "fp32",
        "ema_decay": 0.999,
        "recompute": False,
        "layout": {"zero": options.zero},
        "checkpoint": {"keep_last": 2},
    }  # fmt: skip


def batch() -> Any:
    """One sample of 3 x 8 x 32 x 56."""
    from models.data.batch import MicroBatch
    from models.rng import stream

    draw = stream(0, "bench").standard_normal
    one = np.ones(1, np.float32)
    return MicroBatch(
        x=draw((1, 3, 8, 32, 56)).astype(np.float32), noise=draw((1, 3, 8, 32, 56)).astype(np.float32),
        t=one * 400, y=draw((1, 1, 20, 64)).astype(np.float32), mask=np.ones((1, 20), np.int32), x_mask=None,
        fps=one * 24, height=one * 32, width=one * 56, num_frames=one * 8, drop_ids=np.zeros(1, np.int32),
        weights=one, failures=(),
    )  # fmt: skip


def work(options: argparse.Namespace) -> None:
    """One rank; rank 0 writes what it measured."""
    from models.checkpoint.saver import Saver
    from models.config import TrainConfig
    from models.parallel.mesh import Mesh
    from models.parallel.ranks import start
    from models.step import TrainStep

    world = start()
    config = TrainConfig.model_validate(settings(options))
    train = TrainStep(config, Mesh(world, config.layout), fixed_shape=True)
    train.prepare()
    saver = Saver(options.folder / "checkpoints", world, socket.gethostname(), config.checkpoint)
    batches = [batch()]
    saved: list[dict[str, float]] = []

    def block(step: int, save: bool) -> tuple[float, float]:
        begin, busy = time.perf_counter(), time.process_time()
        if save:
            saver.begin(step, list(train.pieces()), {"step": step})
        done = None
        for _ in range(options.every):
            result = train.run(batches, LR, saver.progress())
            done = done or saver.settle(result.progress)
        done = done or saver.drain()
        if done is not None:
            saved.append({"bytes": done.size, "seconds": done.seconds, "stall": done.stall})
        return (time.perf_counter() - begin) / options.every, (time.process_time() - busy) / options.every

    for _ in range(WARM_UP):
        train.run(batches, LR)
    block(0, True)
    saved.clear()
    seconds: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for number in range(1, options.saves + 1):
        for save in (True, False) if number % 2 else (False, True):
            seconds[save].append(block(number, save))
    if world.rank == 0:
        blocks = {name: list(zip(*seconds[save], strict=True)) for name, save in (("on", True), ("off", False))}
        told = {name: blocks[name][0] for name in blocks} | {f"{name}_cpu": blocks[name][1] for name in blocks}
        told["saved"] = saved
        (options.folder / "measured.json").write_text(json.dumps(told))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the ranks and reads what rank 0 measured."""
    words = [f"--{name}={getattr(options, name)}" for name in ("saves", "every", "hidden", "depth", "zero")]
    command = ["python", "-m", "bench.bench_saving", "--as-rank", f"--folder={options.folder}", *words]
    environment = {**os.environ, "GLOG_v": "3", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.setdefault("OMP_NUM_THREADS", str(host_threads(options.workers)))
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    if options.workers > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        workers = [f"--worker_num={options.workers}", f"--local_worker_num={options.workers}"]
        command = [
            "msrun",
            *workers,
            f"--master_port={port}",
            f"--log_dir={options.folder}/logs",
            "--join=True",
            *command,
        ]
    with (options.folder / "log").open("w+") as log:
        process = subprocess.Popen(command, env=environment, cwd=options.folder, stdout=log, stderr=log)
        try:
            code = process.wait()
        finally:
            if process.poll() is None:
                # msrun ends its workers on SIGINT only.
                process.send_signal(signal.SIGINT)
                process.wait(60)
        log.seek(0)
        said = log.read()[-3000:]
    result = options.folder / "measured.json"
    if code or not result.exists():
        raise SystemExit(f"the workers ended with code {code}\n{said}")
    told: dict[str, Any] = json.loads(result.read_text())
    return told


def report(options: argparse.Namespace, told: dict[str, Any]) -> float:
    """Prints the lines; the greater of both ways to see the cost."""
    for name in ("on", "off"):
        values = told[name]
        spread = [round(min(values), 4), round(max(values), 4)]
        line = {"what": f"step, saving {name}", "seconds": round(statistics.median(values), 4), "spread": spread}
        cpu = round(statistics.median(told[f"{name}_cpu"]), 4)
        print(json.dumps({**line, "cpu_seconds": cpu, "blocks": len(values)}))
    saved = told["saved"]
    stalls = [1000 * one["stall"] for one in saved]
    print(json.dumps({
        "what": "checkpoint", "saves": len(saved), "bytes": int(saved[0]["bytes"]), "workers": options.workers,
        "zero": options.zero, "every": options.every,
        "seconds": round(statistics.median(one["seconds"] for one in saved), 4),
        "stall_ms": round(statistics.median(stalls), 2), "spread": [round(min(stalls), 2), round(max(stalls), 2)],
    }))  # fmt: skip
    pairs = [on / off - 1 for on, off in zip(told["on"], told["off"], strict=True)]
    total, middle = sum(told["on"]) / sum(told["off"]) - 1, statistics.median(pairs)
    held = sum(one["stall"] for one in saved) / (sum(told["off"]) * options.every)
    print(json.dumps({"what": "cost of saving", "total": round(total, 4), "median_of_pairs": round(middle, 4),
                      "held_up": round(held, 4), "limit": LIMIT, "saves": len(saved)}))  # fmt: skip
    return max(total, middle)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.bench_saving", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--saves", type=int, default=20, help="checkpoints, and blocks of each kind")
    parser.add_argument("--every", type=int, default=15, help="steps a block")
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--zero", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where checkpoints go [default: a temporary folder]")
    parser.add_argument("--as-rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.as_rank:
        os.environ["OMP_NUM_THREADS"] = str(host_threads(launcher_size()))
        if is_scheduler():
            from models.parallel.ranks import start

            start()
            return 0
        work(options)
        return 0
    # Ended from outside, it still ends its workers.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="ostrain-saving-", dir=options.folder) as folder:
        options.folder = Path(folder)
        return int(report(options, measure(options)) >= LIMIT)


if __name__ == "__main__":
    sys.exit(main())

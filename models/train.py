"""Trains: ``python -m models.train --config train.yaml [--run-dir .]``, alone or as one worker of msrun.

Reads RANK_ID and RANK_SIZE of the launcher; OSTRAIN_NODE and OSTRAIN_ATTEMPT where there is an agent. Writes the files
of docs/run-directory.md. Exit codes: 0 done, 64-68 as in models/exits.py, 1 for anything else.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from models.events import Log, Reporter
from models.faults import die
from models.parallel.world import host_threads, is_scheduler, launcher_rank, launcher_size


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m models.train", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", type=Path, default=Path("train.yaml"), help="default: train.yaml")
    parser.add_argument("--run-dir", type=Path, default=Path("."), help="run directory (default: here)")
    options = parser.parse_args(arguments)
    # Before MindSpore is imported: threads per worker, and no chatter of its scheduler in the log.
    os.environ["OMP_NUM_THREADS"] = str(host_threads(launcher_size()))
    os.environ.setdefault("GLOG_v", "3")
    if is_scheduler():
        from models.parallel.ranks import start

        start()
        return 0
    rank = launcher_rank()
    run_dir = options.run_dir.absolute()
    log = Log()
    step = 0
    try:
        for folder in ("heartbeat", "metrics"):
            (run_dir / folder).mkdir(parents=True, exist_ok=True)
        report = Reporter(run_dir, rank)
        report.heartbeat(0, "starting")
        from models.settings import read_config

        config = read_config(options.config if options.config.is_absolute() else run_dir / options.config)
        from models.parallel.ranks import start
        from models.trainer import Trainer

        world = start(config.max_device_memory)
        # The library may have put handlers of its own in place: a worker told to end ends, wherever it is.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        trainer = Trainer(config, run_dir, world, report, log)
        try:
            trainer.run()
        finally:
            step = trainer.step
        return 0
    except Exception as error:
        die(error, run_dir, rank, step, log)


if __name__ == "__main__":
    sys.exit(main())

"""One rank that samples in several run directories in turn: ``python -m tests.models.sample_worker FOLDER…``."""

from __future__ import annotations

import sys
import time
from pathlib import Path


def main(folders: list[Path]) -> None:
    from models.events import Log, Reporter
    from models.parallel.ranks import start
    from models.sampling.run import SampleRun
    from models.sampling.setup import read_sample_config
    from models.task import Task

    world = start()
    for folder in folders:
        task = Task(folder, world, Reporter(folder, world.rank), Log())
        SampleRun(read_sample_config(folder / "sample.yaml"), task).run()
    time.sleep(0.5)  # a rank that leaves while another still receives breaks that one's last collective


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])

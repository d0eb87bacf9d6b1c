"""Samples: ``python -m models.sample --config sample.yaml [--run-dir .]``, alone or as one worker of msrun.

Text to image and video, conditioned on images and clips, of any length; docs/sampling.md. Writes the results, a line
for each in ``samples.jsonl``, and the files of docs/run-directory.md. Exit codes: 0 done, 64-68 as in models/exits.py,
1 for anything else.
"""

from __future__ import annotations

import sys

from models.config.sample import SampleConfig
from models.sampling.setup import read_sample_config
from models.task import Task, run_task


def sample(config: SampleConfig, task: Task) -> None:
    """Samples this rank's share, to the end."""
    from models.sampling.run import SampleRun

    SampleRun(config, task).run()


def main(arguments: list[str] | None = None) -> int:
    return run_task("sample", __doc__ or "", read_sample_config, sample, arguments)


if __name__ == "__main__":
    sys.exit(main())

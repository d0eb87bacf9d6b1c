"""Peak memory of a rank under a ZeRO stage: ``python -m tests.layouts.memory FOLDER ZERO`` on every rank.

What the process holds at its peak (VmHWM of /proc) above what it held before the model was built. A tiny model is
trained first, so that the machinery's own memory is not counted.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

from tests.layouts.cases import Case, batch_of, config, sample

# 24 blocks: the largest unit is a small part of the whole, as in the models this is for. Few tokens: weights dominate.
MODEL = {
    "in_channels": 3, "hidden_size": 512, "depth": 12, "num_heads": 4, "patch_size": [1, 2, 2],
    "caption_channels": 12, "model_max_length": 7, "class_dropout_prob": 0.2,
}  # fmt: skip
SIZE = (3, 2, 4, 4)
STEPS = 2


def main(folder: Path, zero: int) -> None:
    from models.parallel.mesh import Mesh
    from models.parallel.ranks import start
    from models.parallel.theory import peak_memory
    from models.step import TrainStep

    world = start()

    def trained(**changes: Any) -> list[int]:
        settings = config(Case(zero=zero, recompute=1), ema_decay=None, **changes)
        step = TrainStep(settings, Mesh(world, settings.layout), fixed_shape=True)
        step.prepare()
        for number in range(STEPS):
            step.run([batch_of([sample(number, world.rank, SIZE)], SIZE)], 1e-3)
        return [unit.length for unit in step.weights.units]

    trained()
    gc.collect()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    units = trained(model=MODEL)
    measured = _status("VmHWM") - before
    theory = peak_memory(units, world.size, zero, averages=False)
    facts = {"zero": zero, "world": world.size, "measured": measured, "theory": theory.total, "units": units}
    (folder / f"rank-{world.rank}.json").write_text(json.dumps(facts))
    world.barrier()
    time.sleep(0.5)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

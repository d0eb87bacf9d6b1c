"""One rank of a comparison: trains every case of a list and writes what happened. Started alone or by msrun.

``python -m tests.layouts.worker FOLDER``: FOLDER/cases.json in (see tests/layouts/compare.py, ``Wanted``),
FOLDER/<case>/rank-R.npz out.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.layouts import cases
from tests.layouts.breaks import apply_break
from tests.layouts.cases import Case, config


def main(folder: Path) -> None:
    from models.parallel.ranks import start

    world = start()
    for entry in json.loads((folder / "cases.json").read_text()):
        target = folder / entry["name"]
        target.mkdir(exist_ok=True)
        undo = apply_break(entry["breaks"])
        begin = time.perf_counter()
        values = train(world, entry)
        undo()
        np.savez(target / f"rank-{world.rank}.npz", seconds=time.perf_counter() - begin, **values)
        print(f"{entry['name']} {time.perf_counter() - begin:.1f} s", flush=True)
    world.barrier()
    time.sleep(0.5)  # a rank that leaves while another still receives breaks that one's last collective


def train(world: Any, entry: dict[str, Any]) -> dict[str, np.ndarray]:
    """Losses, norms, traffic of every step; this rank's parts of the first step's gradients and of the end's state."""
    from models.parallel.mesh import Mesh
    from models.step import TrainStep

    case = Case(**entry["case"])
    settings = config(case)
    step = TrainStep(settings, Mesh(world, settings.layout), fixed_shape=True, dtype=case.dtype)
    first = _load(step, world, Path(entry["load"])) if entry["load"] else 0
    if not entry["load"]:
        step.prepare()
    values: dict[str, np.ndarray] = {}
    _watch_first_gradients(step, values)
    losses, norms, traffic = [], [], []
    for number in range(first, entry["steps"]):
        batches = cases.micro_batches(number, step.mesh.dp_rank, step.mesh.dp, case.accumulation)
        if settings.mask_ratios is None:
            batches = [replace(batch, x_mask=None) for batch in batches]
        result = step.run(batches, settings.optimizer.lr)
        losses.append(result.loss)
        norms.append(result.grad_norm)
        traffic.append(result.comm)
        if entry["save"] and number + 1 == entry["save_at"]:
            _save(step, world, Path(entry["save"]), number + 1)
    for piece in step.pieces():
        values[f"state/{piece.kind}/{piece.name}/{piece.start}"] = piece.values().copy()
    return values | {
        "losses": np.array(losses),
        "norms": np.array(norms),
        "traffic": np.array(json.dumps(traffic)),
        "units": np.array([unit.length for unit in step.weights.units]),
    }


def _save(step: Any, world: Any, folder: Path, number: int) -> None:
    from models.checkpoint.saver import Saver
    from models.config import CheckpointConfig

    saver = Saver(folder, world, "node-0", CheckpointConfig())
    facts = {"step": number, "updates": step.update.count, "loss_scale": step.scale.state()}
    saver.begin(number, list(step.pieces()), facts)
    saver.drain()


def _load(step: Any, world: Any, folder: Path) -> int:
    from models.checkpoint.find import find
    from models.checkpoint.restore import restore

    found = find(folder, world, "node-0")
    assert found.exists
    assert restore(step, found, world) == []
    return found.step


def _watch_first_gradients(step: Any, values: dict[str, np.ndarray]) -> None:
    apply = step.update.apply

    def first_apply(factor: float, lr: float) -> None:
        values.update(_gradients(step))
        step.update.apply = apply
        apply(factor, lr)

    step.update.apply = first_apply


def _gradients(step: Any) -> dict[str, np.ndarray]:
    """Summed gradients before the update, divided as the optimizer has them: name and start -> flat values."""
    found = {}
    flat = [gradient.asnumpy().reshape(-1) for unit in step.update._gradients for gradient in unit]
    for values, target in zip(flat, step.update.targets, strict=True):
        for held in target.ranges:
            part = values[held.offset : held.offset + held.stop - held.start]
            found[f"gradient/{held.name}/{held.start}"] = part.copy()
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))

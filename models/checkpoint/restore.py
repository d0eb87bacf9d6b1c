"""From a checkpoint into a run: every rank takes the ranges its layout wants, whatever layout wrote them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from models.checkpoint.find import Found
from models.checkpoint.load import Wanted, fetch, fit, read_pieces, refuse
from models.parallel.world import World
from models.step import TrainStep


def restore(train: TrainStep, found: Found, world: World) -> list[str]:
    """Prepares the step and fills it; a collective call. What the checkpoint could not give, in words.

    PayloadError(BAD_CHECKPOINT) if it is not one of this model.
    """
    fitting = fit(found, train.tensors())
    if not fitting.loadable or "model" in fitting.kinds:
        raise refuse(found, fitting)
    train.prepare()
    assert found.manifest is not None
    kinds = found.manifest.kinds
    wanted = [entry for entry in train.wanted() if entry[0] in kinds]
    found, travelled = fetch(found, wanted, world)

    def read(ranges: list[Wanted]) -> Iterator[np.ndarray]:
        return read_pieces(found, ranges)

    train.load(read, kinds, int(found.state["updates"]))
    train.scale.restore(found.state["loss_scale"])
    lines = [f"the checkpoint has no {kind}: it starts anew" for kind in fitting.kinds]
    if travelled:
        lines.append(f"{len(travelled)} shards came from other nodes")
    return lines

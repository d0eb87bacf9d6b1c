"""What learns: parameters with their optimizer and averages, the step that changes them, what checkpoints hold of them.

Every sample's loss is summed with its weight (0 for a sample whose clip did not decode) and divided by the weights of
the whole global batch, so a step is the same however the batch is spread over ranks and micro steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, nn

from models.checkpoint.pieces import Piece
from models.loss_scale import LossScale
from models.parallel.mesh import Mesh
from models.parallel.sources import Weights
from models.parallel.units import host
from models.update import Update, own_share, saved_kinds

Read = Callable[[list[tuple[str, str, int, int]]], Iterator[np.ndarray]]


@dataclass(frozen=True)
class StepResult:
    """loss and grad_norm (before clipping) of the global batch; weight: samples that counted, over all ranks.

    ``applied`` is False when loss or gradients were not finite, or no sample counted: nothing was changed then.
    progress: sum over ranks of what each gave to the step. comm: calls and bytes by collective, this rank.
    losses: parts of the loss by name, for those who want to know.
    """

    loss: float
    grad_norm: float
    weight: float
    applied: bool
    progress: float = 0.0
    comm: dict[str, tuple[int, int]] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)


class Learner:
    """A model, the optimizer of its trainable parameters and their moving average.

    Whoever builds one sets ``config`` (optimizer, ema_decay, layout), ``mesh``, ``model``, ``weights``, ``scale`` and
    ``shapes`` (of all parameters by name), and, once weights are what training starts with, ``update``.
    """

    config: Any
    mesh: Mesh
    model: nn.Cell
    weights: Weights
    scale: LossScale
    shapes: dict[str, tuple[int, ...]]
    update: Update

    def apply(self, weighted_loss: float, weight: float, lr: float) -> StepResult:
        """The optimizer's step with gradients that have been reduced; loss and weight are sums over all ranks."""
        if weight == 0:
            self.update.drop_gradients()
            return StepResult(float("nan"), float("nan"), 0.0, False)
        scale = self.scale.value
        norm = float(np.float32(math.sqrt(self.update.squares()) / (weight * scale)))
        loss = weighted_loss / weight
        finite = bool(np.isfinite(loss) and np.isfinite(norm))
        if finite:
            limit = self.config.optimizer.max_grad_norm
            clip = 1.0 if limit is None else min(1.0, limit / (norm + 1e-6))
            self.update.apply(clip / (weight * scale), lr)
        else:
            self.update.drop_gradients()
        self.scale.update(finite)
        return StepResult(loss, norm, weight, finite)

    def pieces(self) -> Iterator[Piece]:
        """What this rank writes into a checkpoint; frozen parameters and fixed tables are divided among all."""
        yield from self.update.pieces()
        for name, param in self.fixed():
            start, stop = own_share(param.size, self.mesh)
            if start < stop:
                yield Piece("model", name, tuple(param.shape), start, stop, _part(param, start, stop))

    def tensors(self) -> dict[tuple[str, str], tuple[int, ...]]:
        """Shapes by (kind, name) of all tensors a checkpoint holds."""
        trained = [(kind, name) for kind in saved_kinds(self.config) for name in self.weights.params]
        shapes = {key: self.shapes[key[1]] for key in trained}
        return shapes | {("model", name): self.shapes[name] for name, _ in self.fixed()}

    def wanted(self) -> list[tuple[str, str, int, int]]:
        """(kind, name, start, stop): what :meth:`load` will ask for on this rank."""
        fixed = [("model", name, 0, param.size) for name, param in self.fixed()]
        return [*self.update.wanted(), *fixed]

    def load(self, read: Read, kinds: Iterable[str], count: int) -> None:
        """Takes the state from a checkpoint; a collective call under ZeRO 1 and 2.

        read: gives the flat values of every (kind, name, start, stop) asked for. kinds: those the checkpoint has.
        count: optimizer updates done.
        """
        for kind in saved_kinds(self.config):
            if kind in kinds:
                self.update.fill(kind, read)
        for name, param in self.fixed():
            values = next(iter(read([("model", name, 0, param.size)])))
            param.set_data(Tensor(values.reshape(param.shape), param.dtype))
        if "ema" not in kinds:
            self.update.restart_averages()
        self.update.count = count
        self.update.write_back()

    def fixed(self) -> list[tuple[str, Parameter]]:
        """Parameters that do not learn: frozen ones, tables, statistics."""
        return [(name, param) for name, param in self.named_parameters() if name not in self.weights.params]

    def facts(self) -> dict[str, Any]:
        """What ``state.json`` of a checkpoint holds beside the tensors, apart from update count and loss scale."""
        return {}

    def restore_facts(self, facts: Mapping[str, Any]) -> None:
        """Takes back what :meth:`facts` gave, out of all of ``state.json``."""

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """All parameters by the names that checkpoints know them by."""
        yield from self.model.parameters_and_names()


def _part(param: Parameter, start: int, stop: int) -> Callable[[], np.ndarray]:
    return lambda: host(param).reshape(-1)[start:stop]

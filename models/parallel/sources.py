"""Where layers get their weights from and send their gradients to, in eager mode.

A layer with a *source* takes its weights from :class:`Weights` and hands it their gradients as soon as the backward
pass has made them; the framework's own bookkeeping sees activations only. So gradients can leave for other ranks
while the backward pass still runs (ZeRO 2), and weights need to be here only while a layer computes (ZeRO 3): nothing
keeps them from one pass to the other. ZeRO: Rajbhandari et al. 2020.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore import ops as P

from models.layers.embeddings import PatchProjection
from models.layers.linear import Linear
from models.parallel.mesh import Mesh
from models.parallel.units import Unit

_dx = P.MatMul()
_dw = P.MatMul(transpose_a=True)


class Weights:
    """The trainable parameters of a model, whole or in shards, and the gradients of the step that runs.

    Under ZeRO 3 ``shards`` holds this rank's part of every unit, and one unit at a time is gathered: the layers of a
    unit run one after the other, so a unit is fetched once a pass and freed when another one is needed.
    """

    def __init__(self, params: dict[str, Parameter], units: list[Unit], mesh: Mesh, dtype: ms.Type) -> None:
        self.params, self.units, self.mesh, self.dtype = params, units, mesh, dtype
        self.anchor = Parameter(Tensor(np.zeros(1, np.float32)), name="anchor")
        self.shards: list[Tensor] | None = None
        self._unit_of = {name: number for number, unit in enumerate(units) for name in unit.names}
        self._gathered: tuple[int, dict[str, Tensor]] | None = None
        self._gradients: list[dict[str, Tensor]] = [{} for _ in units]
        self._open: int | None = None
        self._done: set[int] = set()
        self._reduce: Callable[[int, Tensor], None] | None = None

    def value(self, name: str) -> Tensor:
        """The whole parameter; under ZeRO 3 after its unit was gathered, if it is not here yet (a collective)."""
        if self.shards is None:
            return self.params[name]
        number = self._unit_of[name]
        if self._gathered is None or self._gathered[0] != number:
            self._gathered = None  # freed before the next one takes its place
            unit = self.units[number]
            whole = self.mesh.everyone.all_gather(self.shards[number].astype(self.dtype))
            self._gathered = (number, dict(zip(unit.names, unit.split(whole), strict=True)))
        return self._gathered[1][name]

    def forget(self) -> None:
        """Frees what was gathered: the weights have changed."""
        self._gathered = None

    def expect(self, reduce: Callable[[int, Tensor], None] | None) -> None:
        """Before a backward pass. ``reduce(unit, flat gradient)`` is called for every unit as it completes.

        None: gradients are kept and added to (micro steps before the last one).
        """
        self._reduce, self._open = reduce, None
        self._done.clear()

    def deliver(self, name: str, gradient: Tensor) -> None:
        """Called by layers in the backward pass, once for every use of the parameter."""
        number = self._unit_of[name]
        if self._reduce is not None and number != self._open:
            self._finish()
            if number in self._done:
                raise RuntimeError(f"gradient of {name} came after its unit had been sent")
            self._open = number
        held = self._gradients[number]
        held[name] = held[name] + gradient if name in held else gradient

    def finish(self) -> None:
        """After the last backward pass: sends what is left, zeros for units that had no part in it."""
        self._finish()
        for number in reversed(range(len(self.units))):
            if number not in self._done:
                self._open = number
                self._finish()

    def _finish(self) -> None:
        number, self._open = self._open, None
        if number is None or self._reduce is None:
            return
        unit, held = self.units[number], self._gradients[number]
        self._gradients[number] = {}
        whole = [held.pop(name, None) for name in unit.names]
        self._done.add(number)
        self._reduce(
            number,
            unit.flatten(
                P.zeros(shape, ms.float32) if gradient is None else gradient
                for gradient, shape in zip(whole, unit.shapes.values(), strict=True)
            ),
        )

    def drop_gradients(self) -> None:
        self._gradients = [{} for _ in self.units]


class _LinearUse(nn.Cell):
    """x @ weight.T + bias whose backward pass asks for the weight again instead of keeping it."""

    def __init__(self, layer: Any, weights: Weights, names: tuple[str, str | None]) -> None:
        super().__init__()
        object.__setattr__(self, "layer", layer)
        self.weights, (self.weight, self.bias) = weights, names

    def _matrix(self) -> Tensor:
        value = self.weights.value(self.weight)
        return value.reshape(value.shape[0], -1)

    def construct(self, x: Tensor, anchor: Tensor) -> Tensor:
        bias = None if self.bias is None else self.weights.value(self.bias)
        return self.layer._linear(x, self._matrix(), bias)

    def bprop(self, x: Tensor, anchor: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        rows, changes = x.reshape(-1, x.shape[-1]), dout.reshape(-1, dout.shape[-1])
        if self.bias is not None:
            self.weights.deliver(self.bias, changes.astype(ms.float32).sum(0))
        weight = self._matrix()
        gradient = _dw(changes, rows).astype(ms.float32)
        self.weights.deliver(self.weight, gradient.reshape(self.layer.weight_shape))
        if self.layer.first:
            return P.zeros_like(x), P.zeros_like(anchor)
        return _dx(changes, weight.astype(x.dtype)).reshape(x.shape), P.zeros_like(anchor)


class _TensorUse(nn.Cell):
    """A small parameter as a tensor of its own."""

    def __init__(self, weights: Weights, name: str) -> None:
        super().__init__()
        self.weights, self.name = weights, name

    def construct(self, anchor: Tensor) -> Tensor:
        # A copy: what the backward pass keeps must not change when the next unit is gathered.
        return self.weights.value(self.name) + 0

    def bprop(self, anchor: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        self.weights.deliver(self.name, dout.astype(ms.float32))
        return (P.zeros_like(anchor),)


def attach(model: nn.Cell, weights: Weights) -> None:
    """Gives every layer of ``model`` that holds trainable parameters its source."""
    left = set(weights.params)
    for prefix, cell in model.cells_and_names():
        own = {name: f"{prefix}.{name}" for name in cell._params if f"{prefix}.{name}" in left}
        if not own:
            continue
        if isinstance(cell, Linear | PatchProjection):
            use = _LinearUse(cell, weights, (own["weight"], own.get("bias")))
            cell.weight_shape = tuple(cell.weight.shape)
            cell.source = _call_linear(use, weights.anchor)
        else:
            uses = {name: _TensorUse(weights, full) for name, full in own.items()}
            cell.source = _call_tensor(uses, weights.anchor)
        left.difference_update(own.values())
    if left:
        raise ValueError(f"no layer gives away the gradients of {', '.join(sorted(left)[:5])}")


def _call_linear(use: nn.Cell, anchor: Parameter) -> Callable[[Tensor], Tensor]:
    return lambda x: use(x, anchor)


def _call_tensor(uses: dict[str, nn.Cell], anchor: Parameter) -> Callable[[str], Tensor]:
    return lambda name: uses[name](anchor)

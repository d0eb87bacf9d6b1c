"""Gradients of a loss with respect to whole parameters, added up over micro steps and handed on unit by unit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor
from mindspore import ops as P

from models.parallel.units import Unit

# Takes the number of a unit and its flat gradient, summed over this rank's micro steps.
Reduce = Callable[[int, Tensor], None]


class LossGradients:
    """Eager (any shape, functions that draw random numbers), or compiled as one graph for every shape.

    All gradients of a micro step exist at once.
    """

    def __init__(
        self,
        function: Callable[..., tuple[Tensor, Tensor]],
        params: dict[str, Parameter],
        units: Sequence[Unit],
        compiled: bool = False,
    ) -> None:
        """function: inputs -> scalar to differentiate, and a tensor that it wants to tell."""
        self._units, self._names = units, [name for unit in units for name in unit.names]
        ordered = ParameterTuple([params[name] for name in self._names])
        self._run = ms.value_and_grad(function, None, ordered, has_aux=True)
        if compiled:
            self._run = _compiled(self._run)
        self._sums: list[Tensor] | None = None

    def of(self, inputs: Sequence[Any]) -> tuple[float, Tensor, list[Tensor]]:
        """The scalar, what it tells, and gradients in the order of units; nothing is added."""
        (value, told), gradients = self._run(*inputs)
        return float(value.asnumpy()), told, list(gradients)

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Adds gradients from :meth:`of`."""
        new = [gradient.astype(ms.float32) for gradient in gradients]
        self._sums = new if self._sums is None else [held + more for held, more in zip(self._sums, new, strict=True)]

    def finish(self, reduce: Reduce) -> None:
        """Ends a step: ``reduce`` gets every unit's sum, zeros where this rank added nothing."""
        if self._sums is None:
            shapes = [shape for unit in self._units for shape in unit.shapes.values()]
            self._sums = [Tensor(np.zeros(shape, np.float32)) for shape in shapes]
        sums, self._sums = self._sums, None
        last = len(sums)
        for number in reversed(range(len(self._units))):
            unit = self._units[number]
            first = last - len(unit.names)
            reduce(number, unit.flatten(sums[first:last]))
            del sums[first:last]  # freed as soon as it has been sent
            last = first

    def place(self, name: str) -> int:
        """Where the gradient of a parameter is among those of :meth:`of`."""
        return self._names.index(name)


def _compiled(run: Callable[..., Any]) -> Callable[..., Any]:
    def gradients(*inputs: Tensor) -> Any:
        return run(*inputs)

    return ms.jit(gradients)


def norm(gradient: Tensor) -> float:
    """Euclidean norm."""
    return float(np.sqrt(P.square(gradient.astype(ms.float32)).sum().asnumpy()))

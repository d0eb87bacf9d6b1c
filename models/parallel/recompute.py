"""Recomputation in eager mode (Chen et al. 2016): a block keeps its inputs only and runs again in the backward pass."""

from __future__ import annotations

from typing import Any

from mindspore import Parameter, ParameterTuple, Tensor, nn
from mindspore import ops as P

from models.stdit.base import DIFFERENTIABLE


class _Again(nn.Cell):
    """The block as a function of its differentiable tensors."""

    def __init__(self, block: nn.Cell, anchor: Parameter) -> None:
        super().__init__()
        object.__setattr__(self, "block", block)
        self.fixed: list[Any] = []
        self.places: list[int] = []
        self._anchor = ParameterTuple([anchor])
        self._run = lambda *tensors: self._call(tensors)
        self._gradient = P.GradOperation(get_all=True, get_by_list=True, sens_param=True)

    def _call(self, tensors: tuple[Tensor, ...]) -> Tensor:
        arguments = list(self.fixed)
        for place, tensor in zip(self.places, tensors, strict=True):
            arguments[place] = tensor
        return self.block(*arguments)

    def construct(self, *tensors: Tensor) -> Tensor:
        return self._call(tensors)

    def bprop(self, *values: Tensor) -> tuple[Tensor, ...]:
        # Copies without a past: the inner pass must not add its gradients to what the outer one keeps of the inputs.
        tensors, dout = [P.stop_gradient(value) for value in values[:-2]], values[-1]
        gradients: tuple[Tensor, ...] = self._gradient(self._run, self._anchor)(*tensors, dout)[0]
        return gradients


class Recomputed:
    """Called like the block. ``differentiable``: places of the arguments that may be tensors with gradients.

    One call's backward pass comes before the next call: what is not differentiable is kept once.
    """

    def __init__(self, block: nn.Cell, differentiable: tuple[int, ...], anchor: Parameter) -> None:
        self._cell, self._differentiable = _Again(block, anchor), differentiable

    def __call__(self, *arguments: Any) -> Tensor:
        places = [place for place in self._differentiable if arguments[place] is not None]
        self._cell.places = places
        self._cell.fixed = [None if place in places else value for place, value in enumerate(arguments)]
        return self._cell(*(arguments[place] for place in places))


def recompute(model: Any, every: int, anchor: Parameter) -> None:
    """Runs every ``every``-th block of a transformer again in the backward pass; 0: none. Counted as they run."""
    if every == 0:
        return
    model.runs = [
        Recomputed(block, DIFFERENTIABLE, anchor) if number % every == 0 else block
        for number, block in enumerate(model.blocks_in_order(), start=1)
    ]

"""Parts of a network that keep their inputs only and run again in the backward pass (Chen et al. 2016), in eager mode.

:mod:`models.parallel.recompute` does it for layers that hand their gradients over themselves; here parameters are
inputs of the part, so that the framework gets their gradients from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mindspore import Parameter, ParameterTuple, Tensor, nn
from mindspore import ops as P


def run_again(method: Callable[..., Any], *arguments: Any) -> Any:
    """``method(*arguments)``, of a cell; recomputed in the backward pass. Tensors among the arguments get gradients."""
    owner: nn.Cell = method.__self__  # type: ignore[attr-defined]
    params = [param for param in owner.get_parameters() if param.requires_grad]
    places = [place for place, argument in enumerate(arguments) if isinstance(argument, Tensor)]

    def of_tensors(*tensors: Tensor) -> Any:
        values = list(arguments)
        for place, tensor in zip(places, tensors, strict=True):
            values[place] = tensor
        return method(*values)

    return _Again(of_tensors, params, len(places))(*(arguments[place] for place in places), *params)


class _Again(nn.Cell):
    """function of ``count`` tensors; its inputs are those, then the parameters it uses."""

    def __init__(self, function: Callable[..., Any], params: Sequence[Parameter], count: int) -> None:
        super().__init__(auto_prefix=False)
        # Past Cell's own attributes: these parameters belong to the network.
        object.__setattr__(self, "_of_tensors", function)
        object.__setattr__(self, "_used", params)
        self._count = count
        self._gradient = P.GradOperation(get_all=True, get_by_list=bool(params), sens_param=True)

    def construct(self, *inputs: Tensor) -> Any:
        return self._of_tensors(*inputs[: self._count])

    def bprop(self, *values: Any) -> tuple[Tensor, ...]:
        # Copies without a past: the inner pass must not add its gradients to what the outer one keeps of the inputs.
        tensors, dout = [P.stop_gradient(value) for value in values[: self._count]], values[-1]
        if not self._used:
            return tuple(self._gradient(self._of_tensors)(*tensors, dout))
        of_tensors, of_params = self._gradient(self._of_tensors, ParameterTuple(self._used))(*tensors, dout)
        return (*of_tensors, *of_params)

"""AdamW (Loshchilov & Hutter 2019) with the arithmetic of torch.optim.AdamW."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn

from models import ops
from models.config import OptimizerConfig
from models.exits import BAD_CHECKPOINT, PayloadError
from models.ops import common


class AdamW(nn.Cell):
    """Decoupled weight decay, bias correction, epsilon added to the corrected root.

    State: per parameter ``exp_avg.<name>`` and ``exp_avg_sq.<name>`` (float32, the parameter's shape), and the number
    of steps done. Two ways to use it:

    * ``step(grads, lr)`` does everything;
    * inside ``ms.jit``: ``hyper = optimizer.advance(lr)`` before the compiled step, ``optimizer(grads, hyper)`` in it.
      The corrections change every step, so they enter as a tensor, computed on the host in double precision.
    """

    def __init__(self, params: Sequence[Parameter], config: OptimizerConfig, exact: bool = False) -> None:
        """exact: an element's result never depends on where in which tensor it lies; slower on CPU."""
        super().__init__(auto_prefix=False)
        self.names = [param.name for param in params]
        self.config = config
        self.betas = (float(config.betas[0]), float(config.betas[1]))
        self.constants = (1.0 - self.betas[0], self.betas[1], 1.0 - self.betas[1], float(config.eps))
        self.decays = config.weight_decay > 0
        self.count = 0
        self.params = ParameterTuple(params)
        self.exp_avg = ParameterTuple([_zeros_like(param, "exp_avg.") for param in params])
        self.exp_avg_sq = ParameterTuple([_zeros_like(param, "exp_avg_sq.") for param in params])
        self._update = common.adamw_update if exact else ops.adamw_update

    def advance(self, lr: float) -> Tensor:
        """Counts one step and returns its factors, float32 [3]: see :func:`models.ops.common.adamw_update`."""
        self.count += 1
        return Tensor(np.asarray(factors(self.config, self.count, lr), np.float32))

    def construct(self, grads: tuple[Tensor, ...], hyper: Tensor) -> bool:
        for index in range(len(self.params)):
            self.update_one(index, grads[index], hyper)
        return True

    def update_one(self, index: int, grad: Tensor, hyper: Tensor) -> None:
        """The part of a step that concerns one parameter."""
        self._update(
            self.params[index], self.exp_avg[index], self.exp_avg_sq[index], grad, hyper, self.constants, self.decays
        )

    def step(self, grads: Sequence[Tensor], lr: float) -> None:
        """One update with gradients in the order of ``params`` and learning rate ``lr``."""
        self.construct(tuple(grads), self.advance(lr))

    def state_dict(self) -> dict[str, np.ndarray]:
        """``exp_avg.<name>``, ``exp_avg_sq.<name>`` and ``step`` (int64 scalar), copied to the host."""
        state = {param.name: param.asnumpy().copy() for param in (*self.exp_avg, *self.exp_avg_sq)}
        state["step"] = np.asarray(self.count, np.int64)
        return state

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Restores what :meth:`state_dict` gave, bit for bit. PayloadError names what does not fit."""
        slots = {param.name: param for param in (*self.exp_avg, *self.exp_avg_sq)}
        wrong = sorted((set(slots) | {"step"}) ^ set(state))
        wrong += [name for name, slot in slots.items() if name in state and tuple(state[name].shape) != slot.shape]
        if wrong:
            shown = ", ".join(wrong[:10]) + (f" and {len(wrong) - 10} more" if len(wrong) > 10 else "")
            raise PayloadError(BAD_CHECKPOINT, "optimizer state does not fit the model", why=f"differing: {shown}")
        for name, slot in slots.items():
            slot.set_data(Tensor(np.ascontiguousarray(state[name], np.float32)))
        self.count = int(state["step"])


def factors(config: OptimizerConfig, count: int, lr: float) -> tuple[float, float, float]:
    """1 - lr * weight_decay, lr / (1 - beta1**count), sqrt(1 - beta2**count): what changes from step to step."""
    correction1 = 1.0 - config.betas[0] ** count
    correction2 = 1.0 - config.betas[1] ** count
    return 1.0 - lr * config.weight_decay, lr / correction1, math.sqrt(correction2)


def _zeros_like(param: Parameter, prefix: str) -> Parameter:
    return Parameter(
        Tensor(np.zeros(param.shape, np.float32), dtype=ms.float32), name=prefix + param.name, requires_grad=False
    )

"""Exponential moving average of the weights. Upstream: opensora/utils/train_utils.py, update_ema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn

from models import ops
from models.exits import BAD_CHECKPOINT, PayloadError


class EMA(nn.Cell):
    """average = decay * average + (1 - decay) * parameter; starts as an exact copy of ``params``.

    Give it the trainable parameters: the others never change. ``update()`` in PyNative, ``ema()`` inside ``ms.jit``.
    """

    def __init__(self, params: Sequence[Parameter], decay: float) -> None:
        super().__init__(auto_prefix=False)
        self.decay = float(decay)
        self.complement = 1.0 - self.decay
        self.names = [param.name for param in params]
        self.params = ParameterTuple(params)
        self.averages = ParameterTuple(
            [Parameter(Tensor(p.asnumpy().copy()), name=f"ema.{p.name}", requires_grad=False) for p in params]
        )
        self._update = ops.lerp_update

    def construct(self) -> bool:
        for index in range(len(self.params)):
            self.update_one(index)
        return True

    def update_one(self, index: int) -> None:
        """Moves one average."""
        self._update(self.averages[index], self.params[index], self.decay, self.complement)

    def update(self) -> None:
        """Moves the averages one step towards the parameters."""
        self.construct()

    def state_dict(self) -> dict[str, np.ndarray]:
        """Averages by the parameters' own names, copied to the host."""
        return {name: value.asnumpy().copy() for name, value in zip(self.names, self.averages, strict=True)}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Restores averages bit for bit; other names are ignored. PayloadError if one is missing."""
        slots = dict(zip(self.names, self.averages, strict=True))
        wrong = [name for name, slot in slots.items() if name not in state or tuple(state[name].shape) != slot.shape]
        if wrong:
            raise PayloadError(BAD_CHECKPOINT, "averaged weights do not fit the model", why=f"differing: {wrong[:10]}")
        for name, slot in slots.items():
            slot.set_data(Tensor(np.ascontiguousarray(state[name], np.float32)))

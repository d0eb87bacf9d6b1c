"""State dictionaries: parameters by their PyTorch names as numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from mindspore import Tensor, nn

from models.exits import BAD_CHECKPOINT, PayloadError


def state_dict(model: nn.Cell) -> dict[str, np.ndarray]:
    """Every parameter of the model (trainable or not) by name, copied to the host."""
    return {name: param.asnumpy().copy() for name, param in model.parameters_and_names()}


def mismatches(model: nn.Cell, state: Mapping[str, np.ndarray]) -> list[str]:
    """What keeps ``state`` from fitting the model: missing, unexpected and wrongly shaped names, one line each."""
    params = dict(model.parameters_and_names())
    lines = [f"missing: {name} {list(params[name].shape)}" for name in params if name not in state]
    lines += [f"unexpected: {name} {list(np.shape(state[name]))}" for name in state if name not in params]
    for name, param in params.items():
        if name in state and tuple(np.shape(state[name])) != tuple(param.shape):
            lines.append(f"shape: {name} is {list(np.shape(state[name]))}, the model has {list(param.shape)}")
    return lines


def load_state_dict(model: nn.Cell, state: Mapping[str, np.ndarray], strict: bool = True) -> list[str]:
    """Copies ``state`` into the model and returns what did not fit (see :func:`mismatches`).

    With ``strict`` anything that does not fit raises PayloadError and the model stays as it was; without, names that
    fit are loaded and the others left alone.
    """
    lines = mismatches(model, state)
    if strict and lines:
        shown = "\n  ".join(lines[:20]) + (f"\n  … and {len(lines) - 20} more" if len(lines) > 20 else "")
        raise PayloadError(
            BAD_CHECKPOINT,
            "weights do not fit the model",
            why=f"{len(lines)} parameters differ:\n  {shown}",
            next_step="check that the model section of the configuration describes the model these weights come from",
        )
    for name, param in model.parameters_and_names():
        value = state.get(name)
        if value is not None and tuple(np.shape(value)) == tuple(param.shape):
            param.set_data(Tensor(np.asarray(value, order="C"), dtype=param.dtype))
    return lines

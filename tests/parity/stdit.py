"""STDiT, STDiT2 and STDiT3: outputs, activations and gradients of every scenario."""

from __future__ import annotations

import re
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from models.stdit import Transformer, config_from_init, create
from models.weights import load_state_dict
from tests.parity.cases import Arrays, Case, CaseError

CONDITIONS = ("mask", "x_mask", "fps", "height", "width", "num_frames", "ar")


def model_of(case: Case) -> Transformer:
    """The model of ``init`` with the case's weights."""
    init = case.config["init"]
    size = tuple(side or 0 for side in init.get("input_size") or ())
    model = create(config_from_init(init, type_of(case)), (size[0], size[1], size[2]) if len(size) == 3 else None)
    load_state_dict(model, case.weights)
    return model


def type_of(case: Case) -> str:
    """The model's class, by the name in the case's: STDiT, STDiT2 or STDiT3."""
    found = re.findall(r"STDiT[23]?", str(case.config.get("cls", case.config.get("class", ""))))
    if not found:
        raise CaseError("config.json does not name the model's class")
    return max(found)


def run(case: Case) -> Arrays:
    """All recorded tensors of the case, computed."""
    model = model_of(case)
    names = [scenario["name"] for scenario in case.config.get("scenarios", [])]
    names += sorted({key.split("/")[0] for key in case.outputs} - set(names))
    options = {scenario["name"]: scenario for scenario in case.config.get("scenarios", [])}
    computed: Arrays = {}
    for name in names:
        result = _scenario(case, model, name, options.get(name, {}))
        computed |= {f"{name}/{key}": value for key, value in result.items()}
    return computed


def _drop_ids(case: Case, name: str, options: dict[str, Any], batch: int) -> Tensor | None:
    for key in ("drop_ids", "force_drop_ids", "drop"):
        if f"{name}/{key}" in case.inputs:
            return case.need(f"{name}/{key}")
    probability = options.get("uncond_prob", case.config["init"].get("class_dropout_prob", 0.1))
    if not options.get("train") or probability == 0:
        return None
    if probability != 1:
        raise CaseError(f"scenario {name!r} drops captions at random, but records no drop ids")
    return Tensor(np.ones(batch, np.int32))


def _scenario(case: Case, model: Transformer, name: str, options: dict[str, Any]) -> Arrays:
    wanted = case.under(name)
    x = case.need(f"{name}/x")
    timestep = case.need(f"{name}/timestep")
    y = case.need(f"{name}/y")
    conditions = [case.tensor(f"{name}/{key}") for key in CONDITIONS]
    drop_ids = _drop_ids(case, name, options, x.shape[0])
    model.set_train(bool(options.get("train")))
    weight = case.tensor(f"{name}/loss_weight")

    def forward(x: Tensor, timestep: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        out = model(x, timestep, y, *conditions, drop_ids)
        loss = out.mean() if weight is None else (out * weight).mean()
        return loss, out

    names = [key.removeprefix("grad/") for key in wanted if key.startswith("grad/")]
    params = dict(model.parameters_and_names())
    unknown = [key for key in names if key not in params]
    if unknown:
        raise CaseError(f"gradients of unknown parameters: {', '.join(unknown)}")
    value_and_grad = ms.value_and_grad(forward, (0, 1, 2), [params[key] for key in names] or None, has_aux=True)
    (loss, out), grads = value_and_grad(x, timestep, y)
    inputs, weights = grads if names else (grads, ())
    result = {"loss": loss.asnumpy(), "out": out.asnumpy()}
    result |= {f"grad_in/{key}": grad.asnumpy() for key, grad in zip(("x", "timestep", "y"), inputs, strict=True)}
    result |= {f"grad/{key}": grad.asnumpy() for key, grad in zip(names, weights, strict=True)}
    acts = [key.removeprefix("act/") for key in wanted if key.startswith("act/")]
    if acts:
        result |= _activations(model, acts, (x, timestep, y, *conditions, drop_ids))
    return result


def _activations(model: Transformer, names: list[str], arguments: tuple[Tensor | None, ...]) -> Arrays:
    """Outputs of the named cells; of one used twice (the time embedding) the last, as recorded."""
    found: Arrays = {}
    handles = []
    for name, cell in model.cells_and_names():
        if name in names:

            def keep(_cell: Any, _inputs: Any, output: Tensor, name: str = name) -> None:
                found[f"act/{name}"] = output.asnumpy()

            handles.append(cell.register_forward_hook(keep))
    model(*arguments)
    for handle in handles:
        handle.remove()
    return found

"""A few training steps: loss, AdamW, clipping and moving average, step by step."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from models import optim
from models.config import DiffusionConfig, OptimizerConfig
from models.diffusion.rflow import RFlow
from models.weights import state_dict
from tests.parity.cases import Arrays, Case
from tests.parity.stdit3 import model_of

BATCH = ("x_start", "t", "noise", "y", "mask", "x_mask", "fps", "height", "width")


def run(case: Case) -> Arrays:
    """All recorded tensors of the case, computed."""
    computed: Arrays = {}
    for options in case.config["traces"]:
        result = _trace(case, options)
        computed |= {f"{options['name']}/{key}": value for key, value in result.items()}
    return computed


def _trace(case: Case, options: dict[str, Any]) -> Arrays:
    config = case.config
    model = model_of(case)
    model.set_train()
    flow = RFlow(DiffusionConfig())
    params = model.trainable_params()
    settings = OptimizerConfig(
        lr=config["lr"], betas=tuple(config["betas"]), eps=options["eps"], weight_decay=config["weight_decay"]
    )
    optimizer, ema = optim.AdamW(params, settings), optim.EMA(params, config["ema_decay"])

    def mean_loss(*batch: Tensor | None) -> Tensor:
        return flow.loss(model, *batch).mean()

    value_and_grad = ms.value_and_grad(mean_loss, None, params)
    result: Arrays = {}
    losses, norms = [], []
    for step in range(config["steps"]):
        loss, grads = value_and_grad(*[case.tensor(f"step{step}/{key}") for key in BATCH])
        norm = optim.global_norm(grads)
        if step == 0:
            result |= {f"step0_grad/{p.name}": grad.asnumpy() for p, grad in zip(params, grads, strict=True)}
        if options.get("clip") is not None:
            grads = optim.clip(grads, norm, options["clip"])
        optimizer.step(grads, config["lr"])
        ema.update()
        losses.append(loss.asnumpy())
        norms.append(norm.asnumpy())
    weights = state_dict(model)
    result |= {"loss": np.stack(losses), "grad_norm": np.stack(norms)}
    result |= {f"final/{key}": value for key, value in weights.items()}
    result |= {f"ema/{key}": value for key, value in (weights | ema.state_dict()).items()}
    return result

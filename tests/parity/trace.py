"""A few training steps: loss, AdamW, clipping and moving average, step by step.

Adam divides by the gradient's size: an entry whose gradient is next to zero moves by a whole learning rate in a
direction that float32's rounding decides, in the original as here. So every entry of the final weights may differ,
beyond its tolerance, by what an ordinary float32 error of gradients does to that entry through AdamW. For all but
those few entries this is far below the tolerance.
"""

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

GRADIENT_ERROR = 2e-7  # of a tensor's largest gradient; the golden README measured up to 1e-6
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
    history: list[list[np.ndarray]] = []
    for step in range(config["steps"]):
        loss, grads = value_and_grad(*[case.tensor(f"step{step}/{key}") for key in BATCH])
        norm = optim.global_norm(grads)
        if step == 0:
            result |= {f"step0_grad/{p.name}": grad.asnumpy() for p, grad in zip(params, grads, strict=True)}
        if options.get("clip") is not None:
            grads = optim.clip(grads, norm, options["clip"])
        optimizer.step(grads, config["lr"])
        history.append([grad.asnumpy() for grad in grads])
        ema.update()
        losses.append(loss.asnumpy())
        norms.append(norm.asnumpy())
    for index, param in enumerate(params):
        slack = gradient_slack([grads[index] for grads in history], settings)
        for kind in ("final", "ema"):
            case.slack[f"{options['name']}/{kind}/{param.name}"] = slack
    weights = state_dict(model)
    result |= {"loss": np.stack(losses), "grad_norm": np.stack(norms)}
    result |= {f"final/{key}": value for key, value in weights.items()}
    result |= {f"ema/{key}": value for key, value in (weights | ema.state_dict()).items()}
    return result


def gradient_slack(grads: list[np.ndarray], settings: OptimizerConfig) -> np.ndarray:
    """How far each entry of a parameter ends up when its gradients carry float32's error up or down."""
    error = [GRADIENT_ERROR * np.max(np.abs(grad)) for grad in grads]
    exact = _travel(grads, settings)
    ends = [_travel([g + sign * e for g, e in zip(grads, error, strict=True)], settings) for sign in (-1.0, 1.0)]
    return np.maximum(np.abs(ends[0] - exact), np.abs(ends[1] - exact))


def _travel(grads: list[np.ndarray], settings: OptimizerConfig) -> np.ndarray:
    """Sum of AdamW's steps without weight decay, in float64."""
    first, second = np.zeros(grads[0].shape), np.zeros(grads[0].shape)
    total = np.zeros(grads[0].shape)
    beta1, beta2 = settings.betas
    for step, grad in enumerate(grads, start=1):
        wide = grad.astype(np.float64)
        first = beta1 * first + (1 - beta1) * wide
        second = beta2 * second + (1 - beta2) * wide * wide
        denominator = np.sqrt(second / (1 - beta2**step)) + settings.eps
        total += settings.lr / (1 - beta1**step) * first / denominator
    return total

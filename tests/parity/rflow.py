"""Rectified flow: time shift, noise, timestep draws, losses with gradients, guided sampling."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor
from mindspore import ops as P

from models.config import DiffusionConfig
from models.diffusion.rflow import RFlow, SampleStep, shift_timesteps
from models.stdit import STDiT3
from tests.parity.cases import Arrays, Case, CaseError
from tests.parity.stdit3 import model_of


def run(case: Case) -> Arrays:
    """All recorded tensors of the case, computed."""
    computed: Arrays = {}
    steps = {item["num_timesteps"] for item in case.config.get("time_shift", [])} or {1000}
    flow = RFlow(DiffusionConfig(num_timesteps=max(steps), use_timestep_transform=False))
    for item in case.config.get("time_shift", []):
        computed |= _time_shift(case, item)
    if "add_noise/out" in case.outputs:
        arguments = [case.need(f"add_noise/{key}") for key in ("x", "noise", "t")]
        computed["add_noise/out"] = flow.add_noise(*arguments).asnumpy()
    if case.under("draw_t"):
        computed |= _draws(case, flow.num_timesteps)
    losses, samples = case.config.get("losses", []), case.config.get("samples", [])
    if losses or samples:
        model = model_of(case)
        for name in losses:
            name = name if isinstance(name, str) else name["name"]
            computed |= {f"{name}/{key}": value for key, value in _loss(case, model, flow, name).items()}
        for options in samples:
            name = options["name"]
            computed |= {f"{name}/{key}": value for key, value in _sample(case, model, flow, options).items()}
    return computed


def _time_shift(case: Case, item: dict[str, Any]) -> Arrays:
    prefix = f"time_shift/{item['i']}"
    sizes = [case.inputs[f"{prefix}/{key}"] for key in ("num_frames", "height", "width")]
    times = case.inputs[f"{prefix}/t"]
    rows = [shift_timesteps(row, *sizes, scale=item["scale"], num_timesteps=item["num_timesteps"]) for row in times]
    return {f"{prefix}/new_t": np.stack(rows)}


def _draws(case: Case, num_timesteps: int) -> Arrays:
    options = case.config.get("t_draw", {})
    sizes = [case.inputs[f"draw_t/{key}"] for key in ("num_frames", "height", "width")]
    computed: Arrays = {}
    for key in case.under("draw_t"):
        method = "logit-normal" if key.startswith("logit_normal") else "uniform"
        config = DiffusionConfig(
            num_timesteps=num_timesteps,
            sample_method=method,
            use_timestep_transform=key.endswith("_shift"),
            transform_scale=case.config.get("t_draw_transform_scale", 1.0),
            loc=options.get("loc", 0.0),
            scale=options.get("scale", 1.0),
        )
        flow = RFlow(config)
        computed[f"draw_t/{key}"] = flow.draw_timesteps(case.inputs[f"draw_t/{flow.draw_kind}"], *sizes)
    return computed


def _loss(case: Case, model: STDiT3, flow: RFlow, name: str) -> Arrays:
    model.set_train()
    x_start, noise, t = (case.need(f"{name}/{key}") for key in ("x_start", "noise", "t"))
    y, mask, x_mask, fps, height, width = (
        case.tensor(f"{name}/{key}") for key in ("y", "mask", "x_mask", "fps", "height", "width")
    )
    names = [key.removeprefix("grad/") for key in case.under(name) if key.startswith("grad/")]
    params = dict(model.parameters_and_names())

    def mean_loss() -> tuple[Tensor, Tensor]:
        terms = flow.loss(model, x_start, t, noise, y, mask, x_mask, fps, height, width)
        return terms.mean(), terms

    weights = [params[key] for key in names] or model.trainable_params()
    (loss, terms), grads = ms.value_and_grad(mean_loss, None, weights, has_aux=True)()
    x_t = flow.noised_input(x_start, t, noise, x_mask)
    out = model(x_t, t, y, mask, x_mask, fps, height, width)
    result = {"loss": loss, "terms/loss": terms, "x_t": x_t, "model_out": out}
    result |= {f"grad/{key}": grad for key, grad in zip(names, grads, strict=False)}
    return {key: value.asnumpy() for key, value in result.items()}


def _sample(case: Case, model: STDiT3, flow: RFlow, options: dict[str, Any]) -> Arrays:
    model.set_train(False)
    name = options["name"]
    z, y = case.need(f"{name}/z"), case.need(f"{name}/y")
    conditions = {key: case.tensor(f"{name}/{key}") for key in ("mask", "fps", "height", "width", "num_frames")}
    noise = case.inputs.get(f"{name}/noise")
    frame_mask = case.inputs.get(f"{name}/frame_mask")
    if frame_mask is not None and noise is None:
        raise CaseError(f"{name} has a frame mask but no noise")
    null = Tensor(np.tile(case.weights["y_embedder.y_embedding"][None, None], (z.shape[0], 1, 1, 1)))
    seen: list[SampleStep] = []
    final = flow.sample(
        model,
        z,
        y,
        null,
        **conditions,
        steps=options["num_sampling_steps"],
        guidance_scale=options["cfg_scale"],
        discrete=options.get("use_discrete_timesteps", False),
        shift=options.get("use_timestep_transform", False),
        frame_mask=frame_mask,
        noise=None if noise is None else lambda index: Tensor(noise[index]),
        observe=seen.append,
    )
    result = {
        "timesteps": np.stack([step.t for step in seen]),
        "model_in": P.stack([step.model_in for step in seen]).asnumpy(),
        "model_out": P.stack([step.velocity for step in seen]).asnumpy(),
        "final": final.asnumpy(),
    }
    if frame_mask is not None:
        result["x_mask"] = np.stack([np.tile(step.x_mask, (2, 1)) for step in seen]).astype(np.uint8)
    return result

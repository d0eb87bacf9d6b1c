"""IDDPM: tables, forward process, losses with gradients, guided DDPM and DDIM sampling."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as P

from models.diffusion.iddpm import IDDPM, IDDPMOptions, SampleStep
from models.diffusion.iddpm_tables import SpeedSampling
from tests.parity.cases import Arrays, Case, CaseError
from tests.parity.stdit import model_of

CONDITIONS = {"v1.0": (), "v1.1": ("num_frames", "height", "width", "ar", "fps")}


def run(case: Case) -> Arrays:
    """All recorded tensors of the case, computed."""
    computed: Arrays = {}
    for item in case.config.get("schedules", []):
        process = _process(case, item["kw"])
        tables = vars(process.tables) | {"timestep_map": process.timestep_map}
        computed |= {f"schedule/{item['name']}/{key}": table for key, table in tables.items()}
    if "q/x" in case.inputs:
        computed |= _forward(case)
    if case.under("speed"):
        speed = SpeedSampling.of(_process(case, {}).tables)
        computed |= {"speed/p": speed.probabilities, "speed/weights": speed.weights}
    losses, samples = case.config.get("losses", []), case.config.get("samples", [])
    if losses or samples:
        model = _model(case)
        for item in losses:
            computed |= {f"{item['name']}/{key}": value for key, value in _loss(case, model, item).items()}
        for item in samples:
            computed |= {f"{item['name']}/{key}": value for key, value in _sample(case, model, item).items()}
    return computed


def tables(case: Case) -> dict[str, Any]:
    """What is recorded as a plain number."""
    return {"speed_meaningful_steps": SpeedSampling.of(_process(case, {}).tables).meaningful_steps}


def _process(case: Case, options: dict[str, Any], guided_channels: int | None = None) -> IDDPM:
    if case.version == "v1.0":
        return IDDPM(IDDPMOptions(**options, precision="float64", guided_channels=3))
    return IDDPM(IDDPMOptions(**options, precision="float32", guided_channels=guided_channels))


def _model(case: Case) -> nn.Cell:
    if case.version not in CONDITIONS:
        raise CaseError(f"{case.version} does not sample with IDDPM")
    return model_of(case)


def _forward(case: Case) -> Arrays:
    process = _process(case, {})
    x, t, noise = (case.need(f"q/{key}") for key in ("x", "t", "noise"))
    x_t = process.add_noise(x, t, noise)
    result = {
        "x_t": x_t,
        "mean": process.at("sqrt_alphas_cumprod", t) * x,
        "logvar": process.at("log_one_minus_alphas_cumprod", t).reshape(-1, 1),
        "post_mean": process.posterior_mean(x, x_t, t),
        "post_var": process.at("posterior_variance", t).reshape(-1, 1),
        "post_logvar": process.at("posterior_log_variance_clipped", t).reshape(-1, 1),
    }
    return {f"q/{key}": value.asnumpy() for key, value in result.items()}


def _conditions(case: Case, name: str) -> dict[str, Tensor | None]:
    return {key: case.tensor(f"{name}/{key}") for key in ("mask", *CONDITIONS[case.version])}


def _loss(case: Case, model: nn.Cell, item: dict[str, Any]) -> Arrays:
    name, process = item["name"], _process(case, item["kw"])
    model.set_train()
    x_start, t, noise, y = (case.need(f"{name}/{key}") for key in ("x_start", "t", "noise", "y"))
    x_mask = case.tensor(f"{name}/x_mask")
    conditions = _conditions(case, name)
    names = [key.removeprefix("grad/") for key in case.under(name) if key.startswith("grad/")]
    params = dict(model.parameters_and_names())

    def denoise(x: Tensor, timestep: Tensor, mask: Tensor | None) -> Tensor:
        framed = {} if mask is None else {"x_mask": mask}
        return model(x, timestep, y, **conditions, **framed)

    def mean_loss() -> tuple[Tensor, dict[str, Tensor]]:
        terms = process.training_losses(denoise, x_start, t, noise, x_mask)
        return terms["loss"].mean(), terms

    weights = [params[key] for key in names] or model.trainable_params()
    (loss, terms), grads = ms.value_and_grad(mean_loss, None, weights, has_aux=True)()
    result = {f"terms/{key}": value for key, value in terms.items()}
    result |= {"loss": loss, "x_t": process.noised_input(x_start, t, noise, x_mask)}
    result |= {"model_t": process.model_timesteps(t)}
    result |= {f"grad/{key}": grad for key, grad in zip(names, grads, strict=False)}
    return {key: value.asnumpy() for key, value in result.items()}


def _sample(case: Case, model: nn.Cell, item: dict[str, Any]) -> Arrays:
    name = item["name"]
    process = _process(case, {"num_sampling_steps": item["num_sampling_steps"]}, item.get("cfg_channel"))
    model.set_train(False)
    z, y = case.need(f"{name}/z"), case.need(f"{name}/y")
    batch = z.shape[0]
    noise = case.inputs[f"{name}/noise"]
    frame_mask = case.inputs.get(f"{name}/frame_mask")
    null = Tensor(np.tile(case.weights["y_embedder.y_embedding"][None, None], (batch, 1, 1, 1)))
    both = P.concat((y, null), 0)
    conditions = _conditions(case, name)
    seen: list[SampleStep] = []

    def denoise(x: Tensor, timestep: Tensor, mask: Tensor | None) -> Tensor:
        framed = {} if mask is None else {"x_mask": mask}
        return model(x, timestep, both, **conditions, **framed)

    final = process.sample(
        denoise,
        z,
        guidance_scale=item["cfg_scale"],
        noise=lambda draw: Tensor(noise[draw, :batch]),
        frame_mask=frame_mask,
        ddim=item.get("ddim", False),
        eta=item.get("eta", 0.0),
        observe=seen.append,
    )
    result = {
        "timesteps": np.array([[step.timestep] * batch for step in seen]),
        "model_in": P.stack([step.model_in for step in seen]).asnumpy(),
        "final": final.asnumpy(),
    }
    masks = [step.x_mask for step in seen if step.x_mask is not None]
    if masks:
        result["x_mask"] = np.stack([np.tile(mask, (2, 1)) for mask in masks]).astype(np.uint8)
    return result

"""Both autoencoders in a row, frozen as training and sampling use them, and as the training of autoencoders does."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor

from models.config import AutoencoderConfig
from models.vae import VideoAutoencoderPipeline, build_network, wrap
from models.vae.loading import fill, whole_names
from tests.parity.cases import Arrays, Case, CaseError
from tests.parity.vae2d import gradients, spatial_config
from tests.parity.vae_temporal import temporal_config


def run(case: Case) -> Arrays:
    computed: Arrays = {}
    for scenario in case.config["scenarios"]:
        if not case.under(scenario["name"]):
            continue  # its inputs serve cal_loss alone
        computed |= _scenario(case, f"{scenario['name']}/", _config(case, scenario))
    if case.under("cal_loss"):
        computed |= _losses(case)
    return computed


def tables(case: Case) -> dict[str, Any]:
    """Sizes of latents for the sizes in the recorded list."""
    config = _config(case, {})
    sizes = [size for size, _ in case.expected.get("latent_size", [])]
    return {"latent_size": [[size, list(config.latent_size((size[0], size[1], size[2])))] for size in sizes]}


def _config(case: Case, scenario: dict[str, Any]) -> AutoencoderConfig:
    init = case.config["init"]
    return AutoencoderConfig(
        type="OpenSoraVAE_V1_2",
        spatial=spatial_config(init["vae_2d"]),
        temporal=temporal_config(init["vae_temporal"]),
        scale_factor=case.config.get("latent_factor_2d", 0.18215),
        scale=_statistics(init.get("scale", 1.0)),
        shift=_statistics(init.get("shift", 0.0)),
        micro_batch_size=init.get("micro_batch_size"),
        micro_frame_size=scenario.get("micro_frame_size", init.get("micro_frame_size")),
        dtype="fp32",
    )


def _statistics(value: float | list[float]) -> float | tuple[float, ...]:
    return tuple(value) if isinstance(value, list) else value


def _network(config: AutoencoderConfig, case: Case) -> VideoAutoencoderPipeline:
    network = build_network(config, seed=0)
    fill(network, whole_names(case.weights, network), case.path)
    return network


def _scenario(case: Case, name: str, config: AutoencoderConfig) -> Arrays:
    x, z = case.need(f"{name}x"), case.need(f"{name}z")
    noise = _noise(case, name, x)
    frames = x.shape[2]
    frozen, network = wrap(config, _network(config, case)), _network(config, case)
    found = {
        "latent2d": network.spatial_vae.encode(x, case.need(f"{name}noise2d")),
        "temporal_moments": frozen.moments(x, noise),
        "latent": frozen.encode(x, noise),
        "decoded2d": network.decode_clip(network.denormalized(z), frames),
        "decoded": frozen.decode(z, frames),
    }
    result = {name + key: value.asnumpy() for key, value in found.items()}
    return result | gradients(case, network, "dec_", "z", lambda value: network.decode(value, frames), name)


def _noise(case: Case, name: str, x: Tensor) -> list[np.ndarray]:
    """Recorded for rows of samples, then frames; autoencoders take it by sample."""
    rows = case.need(f"{name}noise2d").asnumpy()
    frames = rows.reshape(x.shape[0], x.shape[2], *rows.shape[1:]).transpose(0, 2, 1, 3, 4)
    return [frames, case.need(f"{name}noise_t").asnumpy()]


def _losses(case: Case) -> Arrays:
    """What losses are made of, of the scenario with the configuration's own chunks and the recorded size."""
    own = case.config["init"].get("micro_frame_size")
    size = case.outputs["cal_loss/x_rec"].shape
    fitting = [
        scenario
        for scenario in case.config["scenarios"]
        if scenario.get("micro_frame_size", own) == own and case.inputs[f"{scenario['name']}/x"].shape == size
    ]
    if not fitting:
        raise CaseError("no scenario has the size of cal_loss/x_rec")
    name = fitting[0]["name"]
    network = _network(_config(case, fitting[0]), case)
    inputs = [case.need(f"{name}/{key}") for key in ("x", "noise2d", "noise_t")]
    x_rec, x_z_rec, z, _, x_z = network(*inputs)
    found = {"x_rec": x_rec, "x_z_rec": x_z_rec, "z": z, "x_z": x_z}
    return {f"cal_loss/{key}": value.asnumpy() for key, value in found.items()}

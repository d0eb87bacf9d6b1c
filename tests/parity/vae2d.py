"""The image autoencoder frame by frame: latents, moments, reconstructions, gradients; whole and in micro batches."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from models.config import AutoencoderConfig, SpatialConfig
from models.vae import VideoAutoencoderKL, build_network, wrap
from models.vae.autoencoder_kl import as_rows
from models.vae.loading import fill
from tests.parity.cases import Arrays, Case, CaseError


def spatial_config(init: dict[str, Any]) -> SpatialConfig:
    """From constructor arguments of diffusers' ``AutoencoderKL``. CaseError for what it can be but ours cannot."""
    if init.get("act_fn", "silu") != "silu":
        raise CaseError(f"activation {init['act_fn']!r} of the image autoencoder")
    known = SpatialConfig.model_fields
    return SpatialConfig(**{key: value for key, value in init.items() if key in known})


def run(case: Case) -> Arrays:
    config = AutoencoderConfig(
        type="VideoAutoencoderKL",
        spatial=spatial_config(case.config["init"]["vae_2d"]),
        scale_factor=case.config.get("latent_factor", 0.18215),
        dtype="fp32",
    )
    x, z = case.need("x"), case.need("z")
    rows = case.need("noise")
    # Recorded for rows of samples, then frames; autoencoders take it by sample.
    noise = rows.asnumpy().reshape(x.shape[0], x.shape[2], *rows.shape[1:]).transpose(0, 2, 1, 3, 4)
    computed: Arrays = {}
    for prefix, micro in _micro_batches(case):
        frozen = wrap(config.model_copy(update={"micro_batch_size": micro}), _network(config, case))
        computed[f"{prefix}latent"] = frozen.encode(x, [noise]).asnumpy()
        computed[f"{prefix}decoded"] = frozen.decode(z, z.shape[2]).asnumpy()
    network = _network(config, case)
    computed["moments"] = network.module.encode(as_rows(x)).asnumpy()
    computed |= gradients(case, network, "enc_", "x", lambda value: network.encode(value, rows))
    computed |= gradients(case, network, "dec_", "z", network.decode)
    return computed


def gradients(
    case: Case, network: nn.Cell, kind: str, name: str, forward: Callable[[Tensor], Tensor], scenario: str = ""
) -> Arrays:
    """Loss and gradients of mean(forward(input) * weight), as ``kind`` ``enc_`` or ``dec_`` of a scenario recorded."""
    weight = case.tensor(f"{scenario}{kind}loss_weight")
    if weight is None:
        return {}
    recorded = [key[len(scenario) :] for key in case.outputs if key.startswith(scenario)]
    names = [key.removeprefix(f"{kind}grad/") for key in recorded if key.startswith(f"{kind}grad/")]
    params = dict(network.parameters_and_names())
    unknown = [key for key in names if key not in params]
    if unknown:
        raise CaseError(f"gradients of unknown parameters: {', '.join(unknown)}")
    differentiate = ms.value_and_grad(
        lambda value: (forward(value) * weight).mean(), 0, [params[key] for key in names] or None
    )
    loss, grads = differentiate(case.need(f"{scenario}{name}"))
    inner, weights = grads if names else (grads, ())
    found = {f"{kind}loss": loss, f"{kind}grad_in/{name}": inner}
    found |= {f"{kind}grad/{key}": grad for key, grad in zip(names, weights, strict=True)}
    return {f"{scenario}{key}": np.asarray(value.asnumpy()) for key, value in found.items()}


def _network(config: AutoencoderConfig, case: Case) -> VideoAutoencoderKL:
    network = build_network(config, seed=0)
    fill(network, case.weights, case.path)
    return network


def _micro_batches(case: Case) -> list[tuple[str, int | None]]:
    """Prefix of the outputs -> micro batch."""
    found = {match[0]: int(match[1]) for key in case.outputs if (match := re.match(r"micro(\d+)/", key))}
    return [("", None), *found.items()]

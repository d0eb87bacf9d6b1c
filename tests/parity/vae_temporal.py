"""The temporal autoencoder: moments, samples, divergence, reconstructions and gradients of every scenario."""

from __future__ import annotations

from typing import Any

from models.config import TemporalConfig
from models.vae.distribution import deviation, divergence, draw, mean_and_logvar
from models.vae.loading import fill
from models.vae.temporal import VAETemporal
from tests.parity.cases import Arrays, Case
from tests.parity.vae2d import gradients


def temporal_config(init: dict[str, Any]) -> TemporalConfig:
    """From constructor arguments of ``VAE_Temporal``."""
    known = TemporalConfig.model_fields
    return TemporalConfig(**{key: value for key, value in init.items() if key in known})


def run(case: Case) -> Arrays:
    init = case.config["init"]
    network = VAETemporal(temporal_config(init), init["in_out_channels"])
    fill(network, case.weights, case.path)
    computed: Arrays = {}
    for name in sorted({key.split("/")[0] for key in case.outputs}):
        computed |= _scenario(case, network, f"{name}/")
    return computed


def _scenario(case: Case, network: VAETemporal, name: str) -> Arrays:
    x, z = case.need(f"{name}x"), case.need(f"{name}z")
    frames = x.shape[2]
    moments = network.encode(x)
    found = {
        "moments": moments,
        "std": deviation(mean_and_logvar(moments)[1]),
        "sample": draw(moments, case.need(f"{name}noise")),
        "kl": divergence(moments),
        "decoded": network.decode(z, frames),
    }
    result = {name + key: value.asnumpy() for key, value in found.items()}
    result |= gradients(case, network, "enc_", "x", network.encode, name)
    return result | gradients(case, network, "dec_", "z", lambda value: network.decode(value, frames), name)

"""LPIPS with shrunk channels, on recorded pictures."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor
from mindspore import ops as P

from models.vae.lpips import LPIPS, from_weights
from tests.parity.cases import Arrays, Case


def run(case: Case) -> Arrays:
    """All recorded tensors of the case, computed."""
    model = from_weights(case.weights, str(case.path))
    a, b, weights = case.need("a"), case.need("b"), case.need("w")
    computed: Arrays = {
        "scaled_a": model.scaling_layer(a).asnumpy(),
        "lpips": model(a, b).asnumpy(),
        "lpips_direct": model(a, b).asnumpy(),
        "per_layer": np.stack([layer.asnumpy() for layer in model.layers(a, b)]),
    }
    for place, features in enumerate(model.features(a)):
        computed[f"feat{place}_a"] = features.asnumpy()
    return computed | {"grad_b": _gradient(model, a, b, weights)}


def _gradient(model: LPIPS, a: Tensor, b: Tensor, weights: Tensor) -> np.ndarray:
    gradient: np.ndarray = ms.grad(lambda x: P.ReduceSum()(model(a, x) * weights))(b).asnumpy()
    return gradient

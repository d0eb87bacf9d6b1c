"""T5 text encoder: states with and without a mask, position buckets, and the gradient of the token embeddings."""

from __future__ import annotations

import re

import mindspore as ms
import numpy as np
from mindspore import Tensor
from mindspore import ops as P

from models.text.t5 import Read, T5Encoder, T5Shape, position_buckets
from models.text.t5_files import t5_sizes
from tests.parity.cases import Arrays, Case, CaseError


def run(case: Case) -> Arrays:
    """All recorded tensors of the case, computed."""
    sizes = T5Shape(**t5_sizes(case.config["args"]["args"], case.path / "config.json"))
    network = T5Encoder(sizes, _reader(case))
    ids, mask = case.need("input_ids").astype(ms.int32), case.need("attention_mask").astype(ms.int32)
    embeddings = network.shared(ids)
    found: Arrays = {}
    for number, state in enumerate(network.encoder.states(embeddings, mask)):
        found[f"hidden{number}_masked"] = state.asnumpy()
    found["masked"] = network(ids, mask).asnumpy()
    found["unmasked"] = network(ids).asnumpy()
    found["long_unmasked"] = network(case.need("long_ids").astype(ms.int32)).asnumpy()
    found["grad_inputs_embeds"] = _gradient(network, embeddings, mask, case.need("probe"))
    for key in case.outputs:
        offsets = re.fullmatch(r"bucket_of_minus(\d+)_to_(\d+)", key)
        if offsets:
            found[key] = position_buckets(
                np.arange(-int(offsets[1]), int(offsets[2]) + 1),
                sizes.relative_attention_num_buckets,
                sizes.relative_attention_max_distance,
            )
    return found


def _reader(case: Case) -> Read:
    def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
        values = case.weights[name]
        if values.shape != shape:
            raise CaseError(f"{name} is {list(values.shape)}, the configuration says {list(shape)}")
        return values

    return read


def _gradient(network: T5Encoder, embeddings: Tensor, mask: Tensor, probe: Tensor) -> np.ndarray:
    def loss(x: Tensor) -> Tensor:
        return P.ReduceSum()((network.encoder(x, mask) * probe).reshape(-1), (0,))

    gradient: np.ndarray = ms.grad(loss)(embeddings).asnumpy()
    return gradient

"""Training on latents that an autoencoder makes of the batch: noise by sample, the same whatever the layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from models.config import TrainConfig, unrunnable
from models.data.batch import MicroBatch
from models.exits import PayloadError
from models.parallel.group import Group
from models.parallel.mesh import Mesh
from models.parallel.traffic import Traffic
from models.parallel.world import World
from models.rng import stream
from models.step import TrainStep
from models.vae import build_network
from models.vae.encode_batch import batch_encoder
from models.weights import state_dict
from tests.models.runs import settings
from tests.models.test_microbatch import on_ranks
from tests.models.test_vae import TINY

pytestmark = pytest.mark.train

FRAMES, SIDE = 5, 8
ALONE = Group([0], 0, Traffic())


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    for kind in ("OpenSoraVAE_V1_2", "VideoAutoencoderKL"):
        network = build_network(config(kind).autoencoder, 3)
        save_file(state_dict(network), folder / f"{kind}.safetensors")
    return folder


def config(kind: str = "OpenSoraVAE_V1_2", **over: Any) -> TrainConfig:
    values = settings(
        model={"in_channels": 4, "patch_size": [1, 2, 2]},
        data={"image_size": [SIDE, SIDE], "num_frames": FRAMES},
        **over,
    )
    values["autoencoder"] = {**TINY, "type": kind, "pretrained": f"{kind}.safetensors"}
    return TrainConfig.model_validate(values)


def batch(samples: int, train: TrainConfig) -> MicroBatch:
    """Samples whose content depends on their slot alone."""
    latents = train.autoencoder.latent_size((FRAMES, SIDE, SIDE))

    def draw(name: str, *shape: int) -> np.ndarray:
        return np.stack([stream(1, name, slot).standard_normal(shape, np.float32) for slot in range(samples)])

    def full(value: float) -> np.ndarray:
        return np.full(samples, value, np.float32)

    return MicroBatch(
        x=np.tanh(draw("x", 3, FRAMES, SIDE, SIDE)), t=full(300), noise=draw("noise", 4, *latents),
        y=draw("y", 1, 4, 8), mask=np.ones((samples, 4), np.int32), x_mask=None, fps=full(24), height=full(SIDE),
        width=full(SIDE), num_frames=full(FRAMES), drop_ids=np.zeros(samples, np.int32), weights=full(1), failures=(),
        places=tuple((7, slot) for slot in range(samples)),
    )  # fmt: skip


def part(whole: MicroBatch, slot: int) -> MicroBatch:
    chosen = {name: value[slot : slot + 1] for name, value in vars(whole).items() if isinstance(value, np.ndarray)}
    return replace(whole, **chosen, places=whole.places[slot : slot + 1])


@pytest.mark.parametrize("kind", ["OpenSoraVAE_V1_2", "VideoAutoencoderKL"])
def test_latents_of_a_sample_do_not_depend_on_batch_or_ranks(kind: str, weights: Path) -> None:
    train = config(kind)
    whole = batch(2, train)
    encoder = batch_encoder(train, ALONE, weights)
    assert encoder is not None
    found = encoder.encode(whole).x
    assert found.shape == whole.noise.shape and found.dtype == np.float32
    for slot in range(2):
        np.testing.assert_allclose(encoder.encode(part(whole, slot)).x[0], found[slot], atol=2e-6)
    other = encoder.encode(replace(whole, places=((8, 0), (7, 1)))).x
    assert np.abs(other[0] - found[0]).max() > 1e-3 and np.abs(other[1] - found[1]).max() < 2e-6

    def work(group: Group) -> np.ndarray:
        shared = batch_encoder(train, group, weights)
        assert shared is not None
        return shared.encode(whole).x

    import mindspore as ms

    for latents in on_ranks(2, work, join=ms.ops.concat):
        assert np.array_equal(latents, found)


def test_two_steps_on_pixels(weights: Path) -> None:
    train = config(ema_decay=None)
    step = TrainStep(train, Mesh(World(), train.layout), fixed_shape=False, folder=weights)
    assert step.encoder is not None and step.encoder.note
    frozen = {name: value.copy() for name, value in state_dict(step.encoder._autoencoder.network).items()}
    before = state_dict(step.model)
    step.prepare()
    results = [step.run([batch(2, train)], 1e-3) for _ in range(2)]
    assert all(result.applied and np.isfinite(result.loss) for result in results)
    assert results[1].loss < results[0].loss
    assert any(not np.array_equal(before[name], value) for name, value in state_dict(step.model).items())
    after = state_dict(step.encoder._autoencoder.network)
    assert all(np.array_equal(after[name], value) for name, value in frozen.items())
    assert not any(name.startswith(("spatial_vae", "temporal_vae")) for _, name in step.tensors())
    assert step.tokens(FRAMES, SIDE, SIDE) == 2 * 2 * 2


def test_what_needs_no_autoencoder_gets_none(tmp_path: Path) -> None:
    assert batch_encoder(TrainConfig.model_validate(settings()), ALONE, tmp_path) is None
    cached = TrainConfig.model_validate({**config().model_dump(), "data": {"latents": "cached"}})
    assert batch_encoder(cached, ALONE, tmp_path) is None


def test_weights_have_to_be_named_and_there(tmp_path: Path) -> None:
    train = config()
    assert [place for place, _ in unrunnable(train)] == []
    unnamed = train.model_copy(update={"autoencoder": train.autoencoder.model_copy(update={"pretrained": None})})
    ((place, why),) = unrunnable(unnamed)
    assert place == ("autoencoder", "pretrained") and "latents are noise" in why
    with pytest.raises(PayloadError, match="cannot be read"):
        TrainStep(train, Mesh(World(), train.layout), fixed_shape=False, folder=tmp_path)

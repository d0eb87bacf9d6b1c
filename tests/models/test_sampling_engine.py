"""The engine: what it asks of networks and processes, conditioning frames, loops, guidance, batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mindspore import Tensor

from models.config.sample import SampleConfig
from models.convert.stored import of_array
from models.diffusion.rflow import RFlow
from models.exits import PayloadError
from models.sampling import engine as engines
from models.sampling.engine import Engine
from models.sampling.network import load_whole
from models.sampling.noise import latent_noise, step_noise
from models.sampling.requests import Request, build_requests
from models.sampling.shapes import Shape, shape_of
from models.sampling.texts import Embedded, Encoded
from models.stdit import create
from models.text import build as build_text
from tests.models.samplers import IDDPM, MODEL, settings, weights
from tests.parity.cases import Case, load_case
from tests.parity.stdit import model_of

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
LATENT = (4, 8, 12)


def engine_for(align: int | None = None, compiled: bool = False, **over: Any) -> tuple[Engine, SampleConfig]:
    config = SampleConfig(**settings(**over))
    assert config.model is not None and config.text is not None
    model = create(config.model, LATENT)
    made = {name: of_array(value) for name, value in weights(config.model.model_dump()).items()}
    load_whole(model, config.model, made, "")
    return Engine(config, model, shape_of(config), Encoded(build_text(config.text)), align, compiled), config


def requests_of(config: SampleConfig) -> list[Request]:
    return build_requests(config, Path("."))


def clips(
    engine: Engine, requests: list[Request], references: list[list[np.ndarray]] | None = None
) -> list[np.ndarray]:
    return engine.clips(requests, references or [[] for _ in requests])


@pytest.fixture(scope="module")
def rflow() -> tuple[Engine, SampleConfig]:
    return engine_for(prompts=["a red ball", "a blue box", "a red ball"], diffusion={"use_timestep_transform": False})


def test_a_prompt_gives_the_same_whatever_is_beside_it(rflow: tuple[Engine, SampleConfig]) -> None:
    engine, config = rflow
    requests = requests_of(config)
    steps: list[int] = []
    (together,) = engine.clips(requests, [[], [], []], lambda: steps.append(1))
    assert together.shape == (3, 3, *LATENT) and together.dtype == np.float32 and len(steps) == engine.steps == 2
    for row, request in enumerate(requests):
        assert np.abs(clips(engine, [request])[0][0] - together[row]).max() < 1e-5
    assert np.abs(together[0] - together[2]).max() > 0.1  # the same prompt again is another sample
    assert np.isfinite(together).all()


class Recorder:
    """Texts by name that tell who asked for what."""

    def __init__(self, negative: bool) -> None:
        self._negative = negative

    def prompt(self, request: Request, loop: int) -> Embedded:
        return Embedded(np.full((3, 8), float(loop + 1), np.float32), np.array([1, 1, 0]))

    def negative(self, request: Request) -> Embedded | None:
        return Embedded(np.full((9, 8), -1.0, np.float32), np.ones(9, int)) if self._negative else None


@pytest.mark.parametrize("negative", [False, True])
def test_what_the_process_is_given(monkeypatch: pytest.MonkeyPatch, negative: bool) -> None:
    seen: list[Any] = []

    def sample(self: RFlow, model: Any, z: Tensor, *given: Any, **options: Any) -> Tensor:
        seen.append((z.asnumpy(), [None if value is None else value.asnumpy() for value in given], options))
        return z

    engine, config = engine_for(loop=2, condition_frame_length=1, num_sampling_steps=9, fps=8, image_size=[8, 12])
    engine._texts = Recorder(negative)
    monkeypatch.setattr(RFlow, "sample", sample)
    first, _ = clips(engine, requests_of(config))
    assert len(seen) == 2
    for loop, (_, (y, y_null, mask, fps, height, width, frames), options) in enumerate(seen):
        assert y.shape == y_null.shape == (1, 1, 6, 8)
        assert (y[0, 0, :3] == loop + 1).all() and (y[0, 0, 3:] == 0).all()
        assert mask.tolist() == [[1, 1, 0, 0, 0, 0], [1] * 6 if negative else [1, 1, 0, 0, 0, 0]]
        learned = engine._model.y_embedder.y_embedding.asnumpy()
        assert np.array_equal(y_null[0, 0], np.full((6, 8), -1.0) if negative else learned)
        assert [value.tolist() for value in (fps, height, width, frames)] == [[8.0], [8.0], [12.0], [4.0]]
        assert (options["steps"], options["guidance_scale"], options["shift"]) == (9, 2.0, None)
    assert seen[0][2]["frame_mask"] is None
    # The second loop starts with the last latent frame of the first one, kept.
    assert seen[1][2]["frame_mask"].tolist() == [[0, 1, 1, 1]]
    assert np.array_equal(seen[1][0][0, :, 0], first[0, :, -1])
    assert np.array_equal(seen[1][0][0, :, 1:], latent_noise(requests_of(config), 1, (3, *LATENT))[0, :, 1:])


def test_conditioning_frames_stay(rflow: tuple[Engine, SampleConfig]) -> None:
    engine, config = rflow
    reference = np.random.default_rng(1).standard_normal((3, 2, 8, 12)).astype(np.float32)
    conditioned = config.model_copy(
        update={
            "prompts": ("a red ball", "a blue box"),
            "reference_path": ("r", ""),
            "mask_strategy": ("0;0,0,1,-1", ""),
        }
    )
    requests = requests_of(conditioned)
    (found,) = clips(engine, requests, [[reference], []])
    assert np.array_equal(found[0][:, [0, -1]], reference)
    assert np.abs(found[0][:, 1:3] - reference).max() > 0.1
    # The one beside it is as if it were alone.
    assert np.abs(found[1] - clips(engine, requests[1:])[0][0]).max() < 1e-5


def test_frames_that_do_not_exist(rflow: tuple[Engine, SampleConfig]) -> None:
    engine, config = rflow
    conditioned = config.model_copy(update={"reference_path": "r", "mask_strategy": "0,0,0,7"})
    with pytest.raises(PayloadError, match="conditioning frames cannot be placed") as caught:
        clips(engine, requests_of(conditioned), [[np.zeros((3, 2, 8, 12), np.float32)]] * 3)
    assert "target start 7 is outside the 4 latent frames" in caught.value.why


@pytest.mark.parametrize(
    ("model", "over"),
    [
        ({"type": "STDiT", "qk_norm": False}, {"sampling": "ddpm"}),
        ({"type": "STDiT", "qk_norm": False}, {"sampling": "ddim"}),
        ({"type": "STDiT2"}, {"guidance_channels": 2}),
    ],
)
def test_networks_of_1_0_and_1_1(model: dict[str, Any], over: dict[str, Any]) -> None:
    engine, config = engine_for(
        model=MODEL | IDDPM | model, prompts=["a", "b"], diffusion={"type": "iddpm"}, num_sampling_steps=3, **over
    )
    requests = requests_of(config)
    together = clips(engine, requests)[0]
    assert np.isfinite(together).all() and engine.steps == 3
    assert np.abs(clips(engine, requests[1:])[0][0] - together[1]).max() < 1e-4 * np.abs(together).max()


@pytest.mark.parametrize("model", [{}, IDDPM | {"type": "STDiT2"}])
def test_compiled_networks_give_the_same(model: dict[str, Any]) -> None:
    found = []
    for compiled in (False, True):
        kind = "iddpm" if model else "rflow"
        engine, config = engine_for(
            compiled=compiled, model=MODEL | model, diffusion={"type": kind}, reference_path="r", mask_strategy="0"
        )
        reference = np.zeros((3, 1, 8, 12), np.float32)
        found.append(clips(engine, requests_of(config), [[reference]])[0])
    assert np.abs(found[0] - found[1]).max() < 1e-5 * max(1.0, np.abs(found[0]).max())


def test_steps_that_cannot_be_kept() -> None:
    with pytest.raises(PayloadError, match="steps of sampling cannot be kept"):
        engine_for(model=MODEL | IDDPM | {"type": "STDiT2"}, diffusion={"type": "iddpm"}, num_sampling_steps=2000)


def recorded(case: Case, name: str) -> dict[str, np.ndarray]:
    return {key.partition("/")[2]: value for key, value in case.inputs.items() if key.startswith(f"{name}/")}


@pytest.mark.parametrize("name", ["sample_shift", "sample_conditioned", "sample_image"])
def test_the_original_trajectory(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The engine with the noise, texts and sizes of the original's recorded run ends where it ended."""
    case = load_case(GOLDEN / "05_rflow_v1_2")
    given = recorded(case, name)
    options = next(item for item in case.config["samples"] if item["name"] == name)
    count, frames = len(given["z"]), int(given["num_frames"][0])
    model = model_of(case)
    shape = Shape(frames, int(given["height"][0]), int(given["width"][0]), given["z"].shape[2:])
    config = SampleConfig(
        **settings(
            model=model.config.model_dump(),
            prompts=[str(row) for row in range(count)],
            num_sampling_steps=options["num_sampling_steps"],
            guidance_scale=options["cfg_scale"],
            use_timestep_transform=options["use_timestep_transform"],
            fps=24.0,
        )
    )

    class Recorded:
        def prompt(self, request: Request, loop: int) -> Embedded:
            return Embedded(given["y"][request.index, 0], given["mask"][request.index])

        def negative(self, request: Request) -> None:
            return None

    monkeypatch.setattr(engines, "latent_noise", lambda requests, *_: given["z"][: len(requests)])
    monkeypatch.setattr(engines, "step_noise", lambda requests, loop, draw, *_: given["noise"][draw])
    mask = given.get("frame_mask")
    monkeypatch.setattr(engines, "apply_mask_strategy", lambda z, *_: (z, mask))
    (found,) = clips(Engine(config, model, shape, Recorded(), None), requests_of(config))
    expected = case.outputs[f"{name}/final"]
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_step_noise_is_drawn_for_each_step() -> None:
    requests = requests_of(SampleConfig(**settings(prompts=["a", "b"])))
    first, second = (step_noise(requests, 0, draw, (2, 3)) for draw in (0, 1))
    assert first.shape == (2, 2, 3) and not np.array_equal(first, second) and not np.array_equal(first[0], first[1])

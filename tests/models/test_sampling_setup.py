"""Configurations of sampling: what is refused, and what weights bring with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.config.sample import SampleConfig, sample_problems
from models.exits import BAD_CHECKPOINT, BAD_CONFIG, PayloadError
from models.sampling.setup import complete, read_sample_config
from models.sampling.shapes import alignment, repeated_frames, result_frames, shape_of
from models.sampling.weights import find_weights, read_weights
from tests.models.samplers import settings

V1_0 = {"type": "STDiT", "hidden_size": 24, "num_heads": 2}
V1_1 = {"type": "STDiT2", "hidden_size": 24, "num_heads": 2}


def problems(**over: Any) -> dict[str, str]:
    return {".".join(path): why for path, why in sample_problems(SampleConfig(**settings(**over)))}


@pytest.mark.parametrize(
    ("over", "where", "why"),
    [
        ({"prompts": None}, "prompts", "nothing says what to show"),
        ({"prompt_path": "p.txt"}, "prompt_path", "keep one"),
        ({"weights": None}, "weights", "missing"),
        ({"resolution": "720p", "aspect_ratio": "9:16"}, "image_size", "keep one"),
        ({"image_size": None, "resolution": "720p"}, "resolution", "needs aspect_ratio"),
        ({"image_size": None, "resolution": "721p", "aspect_ratio": "9:16"}, "resolution", "unknown resolution '721p'"),
        ({"image_size": None, "resolution": "720p", "aspect_ratio": "9:15"}, "aspect_ratio", "unknown aspect ratio"),
        ({"num_frames": "5s"}, "num_frames", "unknown length '5s'"),
        ({"sampling": "ddpm"}, "sampling", "trained with rflow cannot be sampled with ddpm"),
        ({"guidance_channels": 2}, "guidance_channels", "guides all channels"),
        ({"eta": 0.5}, "eta", "only ddim knows eta"),
        ({"model": V1_0, "loop": 2}, "loop", "loop is 1"),
        ({"model": V1_0, "reference_path": "a.png"}, "reference_path", "no conditioning frames"),
        ({"model": V1_1, "aes": 5.0}, "aes", "without scores"),
        ({"model": V1_1, "guidance_channels": 9}, "guidance_channels", "latents have 4"),
        ({"model": V1_1, "sampling": "ddim", "loop": 2}, "sampling", "knows no conditioning frames"),
        ({"autoencoder": {}, "loop": 2, "condition_frame_length": 4}, "condition_frame_length", "multiple"),
        ({"layout": {"zero": 2}}, "layout.zero", "every rank holds all weights"),
        ({"layout": {"sp": 2}, "jit": "on"}, "jit", "which runs eagerly"),
        ({"layout": {"sp": 4}}, "layout.sp", "cannot share 2 heads; 1, 2 can"),
        ({"model": {"patch_size": [2, 2, 2]}, "loop": 2}, "model.patch_size", "patches of one frame"),
        ({"stage": "text", "text_embeddings": "e"}, "stage", "encoded already"),
    ],
)
def test_what_cannot_be_sampled(over: dict[str, Any], where: str, why: str) -> None:
    assert why in problems(**over)[where]


def test_what_can() -> None:
    assert problems() == {}
    assert problems(model=V1_1, sampling="ddim", eta=0.5, guidance_channels=3) == {}
    assert problems(stage="decode", prompts=None, weights=None) == {}
    assert problems(image_size=None, resolution="720p", aspect_ratio="9:16", num_frames="4s") == {}


def test_when_the_network_is_compiled() -> None:
    found = {
        jit: [SampleConfig(**settings(jit=jit)).compiles(count) for count in (19, 20)] for jit in ("auto", "on", "off")
    }
    assert found == {"auto": [False, True], "on": [True, True], "off": [False, False]}
    assert not SampleConfig(**settings(layout={"sp": 2})).compiles(100)


def test_sizes_of_the_published_networks() -> None:
    config = SampleConfig(
        **settings(model={}, autoencoder={}, image_size=None, resolution="720p", aspect_ratio="9:16", num_frames="4s")
    )
    shape = shape_of(config)
    assert (shape.frames, shape.height, shape.width, shape.latent) == (102, 720, 1280, (30, 90, 160))
    assert (alignment(config), repeated_frames(config)) == (5, 0)
    looped = config.model_copy(update={"loop": 3})
    assert repeated_frames(looped) == 17 and result_frames(looped) == 102 + 2 * 85
    assert alignment(config.model_copy(update={"align": 0})) is None
    frames = SampleConfig(**settings(model=V1_1, autoencoder={"type": "VideoAutoencoderKL"}, image_size=[240, 426]))
    assert shape_of(frames).latent == (4, 30, 53) and alignment(frames) is None
    assert repeated_frames(frames.model_copy(update={"loop": 2, "condition_frame_length": 2})) == 2


def test_sizes_of_which_nothing_is_left() -> None:
    with pytest.raises(PayloadError, match="samples of 4x12 are too small"):
        shape_of(SampleConfig(**settings(autoencoder={"type": "VideoAutoencoderKL"}, image_size=[4, 12])))
    with pytest.raises(PayloadError, match="only repeat the one before"):
        shape_of(SampleConfig(**settings(loop=2, condition_frame_length=4)))


def test_a_file_with_problems_lists_them(tmp_path: Path) -> None:
    path = tmp_path / "sample.yaml"
    path.write_text(yaml.safe_dump(settings(eta=0.5, guidance_channels=1)))
    with pytest.raises(PayloadError) as caught:
        read_sample_config(path)
    assert caught.value.exit_code == BAD_CONFIG and caught.value.where == str(path)
    assert "guidance_channels: " in caught.value.why and "eta: " in caught.value.why


def checkpoint(folder: Path, config: dict[str, Any]) -> Path:
    """A checkpoint as far as sampling's configuration looks at it."""
    step = folder / "checkpoints" / "step-3"
    step.mkdir(parents=True)
    (step / "manifest.json").write_text("{}")
    (step / "state.json").write_text(json.dumps({"config": config}))
    return step


TRAINED: dict[str, Any] = {
    "model": settings()["model"],
    "autoencoder": {"type": "identity"},
    "diffusion": {"type": "rflow", "use_timestep_transform": False},
    "data": {"image_size": [16, 24], "num_frames": 6, "resolution": None},
}


def test_a_run_directory_brings_what_is_not_said(tmp_path: Path) -> None:
    step = checkpoint(tmp_path / "run", TRAINED)
    said = {"model": None, "autoencoder": None, "image_size": None, "num_frames": None}
    for place in ("run", "run/checkpoints", "run/checkpoints/step-3"):
        config, source = complete(SampleConfig(**settings(**said, weights=place)), tmp_path)
        assert source is not None and source.path == step and source.step == 3
        assert config.model is not None and config.model.hidden_size == 24
        assert config.diffusion is not None and not config.diffusion.use_timestep_transform
        assert (config.size, config.frames) == ((16, 24), 6)
    config, _ = complete(SampleConfig(**settings(**said | {"num_frames": 1}, weights="run")), tmp_path)
    assert config.frames == 1


def test_files_of_the_run_lie_where_it_found_them(tmp_path: Path) -> None:
    coder = {"type": "VideoAutoencoderKL", "pretrained": "files/vae", "pretrained_2d": "/elsewhere/vae"}
    checkpoint(tmp_path / "run", {**TRAINED, "autoencoder": coder, "model": {"hidden_size": 24, "num_heads": 2}})
    (tmp_path / "run" / "files").mkdir()
    (tmp_path / "run" / "files" / "vae").touch()
    config, _ = complete(SampleConfig(**settings(weights="run", model=None, autoencoder=None)), tmp_path)
    assert config.autoencoder is not None
    assert config.autoencoder.pretrained == str(tmp_path / "run" / "files" / "vae")
    assert config.autoencoder.pretrained_2d == "/elsewhere/vae"


def test_what_nobody_says(tmp_path: Path) -> None:
    checkpoint(tmp_path / "run", {**TRAINED, "data": {"bucket_config": {}, "num_frames": 16}})
    (tmp_path / "model.safetensors").touch()

    def missing(**over: Any) -> PayloadError:
        with pytest.raises(PayloadError) as caught:
            complete(SampleConfig(**settings(**over)), tmp_path)
        return caught.value

    assert missing(weights="run", image_size=None).what == "nothing says size"
    assert missing(weights="run", num_frames=None).what == "nothing says num_frames"
    assert missing(weights="run", text=None).what == "nothing says text"
    assert missing(model=None).what == "nothing says model"
    assert "4 channels of latents, the model 3" in missing(autoencoder={}).what


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.pth").touch()
    (tmp_path / "step-4").mkdir()
    (tmp_path / "step-4" / "manifest.json").write_text("{}")
    for name, what, why in (
        ("gone", "weights do not exist", ""),
        ("empty", "weights cannot be read", "is a folder without weights"),
        ("a.pth", "weights cannot be read", "is empty"),
        ("step-4", "a checkpoint's facts cannot be read", "state.json"),
    ):
        with pytest.raises(PayloadError) as caught:
            read_weights(find_weights(tmp_path / name), use_ema=True)
        assert caught.value.exit_code == BAD_CHECKPOINT and caught.value.what == what and caught.value.next_step
        assert why in caught.value.why

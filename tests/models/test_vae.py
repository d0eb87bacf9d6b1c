"""Autoencoders as others use them: sizes, pieces, ranks, noise, weights, and what they refuse."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from safetensors.numpy import load_file, save_file

from models.config import AutoencoderConfig
from models.exits import BAD_CHECKPOINT, BAD_CONFIG, BAD_DATA, PayloadError
from models.parallel.group import Group
from models.rng import stream
from models.vae import VideoAutoencoderKL, VideoAutoencoderPipeline, build, build_network, wrap
from models.vae.autoencoder import Autoencoder, ClipAutoencoder, FrameAutoencoder
from models.vae.loading import image_names, whole_names
from models.weights import state_dict
from tests.models.test_microbatch import on_ranks

pytestmark = pytest.mark.train

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
TINY: dict[str, Any] = {
    "spatial": {"block_out_channels": [4, 4], "layers_per_block": 1, "norm_num_groups": 2},
    "micro_batch_size": 9,
    "temporal": {
        "filters": 4, "num_res_blocks": 1, "channel_multipliers": [1, 1, 1], "temporal_downsample": [True, True],
        "num_groups": 2,
    },
}  # fmt: skip


def settings(**over: Any) -> AutoencoderConfig:
    return AutoencoderConfig.model_validate({**TINY, **over})


@functools.cache
def clips(**over: Any) -> ClipAutoencoder:
    config = settings(**over)
    found = wrap(config, build_network(config, seed=3))
    assert isinstance(found, ClipAutoencoder)
    return found


@functools.cache
def images() -> FrameAutoencoder:
    config = settings(type="VideoAutoencoderKL")
    found = wrap(config, build_network(config, seed=3))
    assert isinstance(found, FrameAutoencoder)
    return found


def clip(frames: int, height: int = 8, width: int = 6, samples: int = 1) -> Tensor:
    values = stream(1, "pixels", frames, height, width).uniform(-1, 1, (samples, 3, frames, height, width))
    return Tensor(values.astype(np.float32))


def noise_for(autoencoder: Autoencoder, x: Tensor) -> list[np.ndarray]:
    samples, _, *size = x.shape
    return autoencoder.draw_noise([stream(2, "posterior", slot) for slot in range(samples)], tuple(size))


@pytest.mark.parametrize("case", ["04a_vae2d", "04c_vae_pipeline_v1_2"])
def test_names_and_shapes_are_the_originals(case: str) -> None:
    from tests.parity.cases import load_case
    from tests.parity.vae2d import spatial_config
    from tests.parity.vae_temporal import temporal_config

    loaded = load_case(GOLDEN / case)
    init = loaded.config["init"]
    parts = {"spatial": spatial_config(init["vae_2d"])}
    if "vae_temporal" in init:
        parts["temporal"] = temporal_config(init["vae_temporal"])
    kind = "OpenSoraVAE_V1_2" if "temporal" in parts else "VideoAutoencoderKL"
    network = build_network(AutoencoderConfig(type=kind, **parts), seed=0)
    ours = {name: tuple(param.shape) for name, param in network.parameters_and_names()}
    fixed = {"scale": (1, 4, 1, 1, 1), "shift": (1, 4, 1, 1, 1)} if "temporal" in parts else {}
    assert ours == {name: value.shape for name, value in loaded.weights.items()} | fixed


def test_the_defaults_are_the_published_networks() -> None:
    config = AutoencoderConfig()
    assert config.patch_size == (4, 8, 8) and config.latent_channels == 4
    assert (config.spatial.block_out_channels, config.temporal.filters) == ((128, 256, 512, 512), 128)
    network = clips().network
    assert network.scale.asnumpy().reshape(-1).tolist() == pytest.approx([3.85, 2.32, 2.33, 3.06])
    assert network.shift.asnumpy().reshape(-1).tolist() == pytest.approx([-0.10, 0.34, 0.27, 0.98])


@pytest.mark.parametrize("frames", range(1, 71))
def test_latent_sizes_of_all_lengths(frames: int) -> None:
    """Counted chunk by chunk, zeros in front of each."""
    wanted = sum(-(-min(17, frames - first) // 4) for first in range(0, frames, 17))
    assert settings().latent_size((frames, 9, 6)) == (wanted, 4, 3)
    assert settings(micro_frame_size=None).latent_size((frames, 8, 6)) == (-(-frames // 4), 4, 3)
    assert settings(type="VideoAutoencoderKL").latent_size((frames, None, 6)) == (frames, None, 3)
    assert settings(type="identity").latent_size((frames, 9, 6)) == (frames, 9, 6)
    shapes = settings().noise_shapes((frames, 9, 6))
    assert shapes == [(4, frames, 4, 3), (4, wanted, 4, 3)]


@pytest.mark.parametrize("frames", [1, 4, 17, 22])
def test_any_number_of_frames_goes_through(frames: int) -> None:
    autoencoder, x = clips(), clip(frames, samples=2)
    z = autoencoder.encode(x, noise_for(autoencoder, x))
    assert z.shape == (2, 4, *settings().latent_size((frames, 8, 6)))
    back = autoencoder.decode(z, frames)
    assert back.shape == x.shape and back.dtype == z.dtype == ms.float32
    assert np.isfinite(back.asnumpy()).all()


def test_pieces_change_nothing() -> None:
    x = clip(18, samples=2)
    noise = noise_for(clips(), x)
    whole = clips(micro_batch_size=None)
    np.testing.assert_allclose(clips().encode(x, noise).asnumpy(), whole.encode(x, noise).asnumpy(), atol=2e-6)
    z = whole.encode(x, noise)
    np.testing.assert_allclose(clips().decode(z, 18).asnumpy(), whole.decode(z, 18).asnumpy(), atol=2e-6)


def test_the_network_and_its_frozen_form_agree() -> None:
    autoencoder, x = clips(), clip(18, samples=2)
    noise = noise_for(autoencoder, x)
    rows = Tensor(noise[0].transpose(0, 2, 1, 3, 4).reshape(36, 4, 4, 3))
    z = autoencoder.network.encode(x, rows, Tensor(noise[1]))
    np.testing.assert_allclose(autoencoder.encode(x, noise).asnumpy(), z.asnumpy(), atol=2e-6)
    x_rec, x_z_rec, z, moments, x_z = autoencoder.network(x, rows, Tensor(noise[1]))
    assert (x_rec.shape, x_z_rec.shape, x_z.shape) == (x.shape, (2, 4, 18, 4, 3), (2, 4, 18, 4, 3))
    assert (z.shape, moments.shape) == ((2, 4, 6, 4, 3), (2, 8, 1, 4, 3))  # of the last chunk, one frame


@pytest.mark.parametrize("make", [clips, images])
def test_the_posterior_makes_the_latents(make: Any) -> None:
    autoencoder, x = make(), clip(5)
    noise = noise_for(autoencoder, x)
    mean, std = (value.asnumpy() for value in autoencoder.posterior(x, noise))
    drawn = (mean + std * noise[-1]) * autoencoder.cache_scale
    np.testing.assert_allclose(autoencoder.encode(x, noise).asnumpy(), drawn, atol=1e-6)
    plain = autoencoder.posterior(x)[0].asnumpy() * autoencoder.cache_scale
    np.testing.assert_allclose(autoencoder.encode(x).asnumpy(), plain, atol=1e-6)
    assert (std > 0).all() and np.abs(drawn - plain).max() > 1e-3


def test_the_noise_of_a_sample_does_not_depend_on_its_batch() -> None:
    streams = [lambda slot=slot: stream(2, "posterior", slot) for slot in range(3)]
    together = clips().draw_noise([make() for make in streams], (5, 8, 6))
    alone = clips().draw_noise([streams[1]()], (5, 8, 6))
    assert [array.shape for array in together] == [(3, 4, 5, 4, 3), (3, 4, 2, 4, 3)]
    assert all(np.array_equal(one[1:2], other) for one, other in zip(together, alone, strict=True))


@pytest.mark.parametrize("frames", [1, 18])
@pytest.mark.parametrize("kind", ["OpenSoraVAE_V1_2", "VideoAutoencoderKL"])
def test_ranks_together_get_what_one_gets(frames: int, kind: str) -> None:
    config, x = settings(type=kind), clip(frames, samples=2)
    serial = clips() if kind == "OpenSoraVAE_V1_2" else images()
    noise = noise_for(serial, x)
    z = serial.encode(x, noise)
    pixels = serial.decode(z, frames).asnumpy()

    def work(group: Group) -> list[np.ndarray]:
        shared = wrap(config, serial.network, group)
        return [shared.encode(x, noise).asnumpy(), shared.decode(z, frames).asnumpy()]

    for found in on_ranks(2, work, join=ms.ops.concat):
        assert np.array_equal(found[0], z.asnumpy()) and np.array_equal(found[1], pixels)


@pytest.mark.parametrize("make", [clips, images])
def test_odd_sides_lose_their_last_pixels(make: Any) -> None:
    z = make().encode(clip(2, 9, 7))
    assert z.shape[3:] == (4, 3)
    assert make().decode(z, 2).shape == (1, 3, 2, 8, 6)


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ((1, 3, 0, 8, 8), "nothing to encode"),
        ((1, 3, 4, 1, 8), "at least"),
        ((1, 4, 4, 8, 8), "3, frames"),
        ((3, 4, 8, 8), "samples"),
    ],
)
@pytest.mark.parametrize("make", [clips, images])
def test_pixels_that_are_refused(shape: tuple[int, ...], why: str, make: Any) -> None:
    with pytest.raises(PayloadError) as caught:
        make().encode(ms.ops.zeros(shape, ms.float32))
    assert caught.value.exit_code == BAD_DATA and why in caught.value.why


@pytest.mark.parametrize(("latents", "channels", "frames"), [(1, 4, 0), (2, 4, 4), (1, 3, 4), (5, 4, 21)])
@pytest.mark.parametrize("make", [clips, images])
def test_latents_that_are_refused(latents: int, channels: int, frames: int, make: Any) -> None:
    with pytest.raises(PayloadError, match="cannot be decoded"):
        make().decode(ms.ops.zeros((1, channels, latents, 4, 4), ms.float32), frames)


def test_identity() -> None:
    autoencoder, x = build(AutoencoderConfig(type="identity")), clip(3)
    assert np.array_equal(autoencoder.encode(x, []).asnumpy(), x.asnumpy())
    mean, std = autoencoder.posterior(x)
    assert np.array_equal(mean.asnumpy(), x.asnumpy()) and not std.asnumpy().any()
    assert np.array_equal(autoencoder.decode(x, 3).asnumpy(), x.asnumpy())
    assert autoencoder.draw_noise([stream(1, "a")], (3, 8, 6)) == [] and autoencoder.note == ""
    assert (autoencoder.out_channels, autoencoder.patch_size) == (3, (1, 1, 1))


def test_the_type_it_computes_in_is_told() -> None:
    assert clips().dtype == "fp32" and clips().note == "autoencoder in fp32: the CPU has no bf16 kernels"
    config = settings(dtype="fp32")
    assert wrap(config, build_network(config, 0)).note == ""


def saved(network: VideoAutoencoderKL | VideoAutoencoderPipeline, path: Path, **renamed: np.ndarray) -> Path:
    save_file({**state_dict(network), **renamed}, path)
    return path


def test_weights_from_files(tmp_path: Path) -> None:
    """Both parts, then the image part alone over it, by relative paths."""
    first, second = (build_network(settings(), seed) for seed in (1, 2))
    saved(first, tmp_path / "whole.safetensors")
    prefix = "spatial_vae.module."
    (tmp_path / "vae").mkdir()
    own = {name.removeprefix(prefix): value for name, value in state_dict(second).items() if name.startswith(prefix)}
    save_file(own, tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    loaded = build(settings(pretrained="whole.safetensors", pretrained_2d="vae"), folder=tmp_path)
    values = state_dict(loaded.network)
    for name, value in state_dict(first).items():
        expected = own[name.removeprefix(prefix)] if name.startswith(prefix) else value
        assert np.array_equal(values[name], expected), name
    assert not any(param.requires_grad for param in loaded.network.get_parameters())
    alone = build(settings(type="VideoAutoencoderKL", pretrained_2d="vae"), folder=tmp_path)
    assert np.array_equal(state_dict(alone.network)["module.encoder.conv_in.weight"], own["encoder.conv_in.weight"])


def test_old_names_of_attention(tmp_path: Path) -> None:
    network = build_network(settings(type="VideoAutoencoderKL"), 1)
    new = {name.removeprefix("module."): value for name, value in state_dict(network).items()}
    old = {}
    for name, value in new.items():
        for after, before in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f"attentions.0.{after}.", f"attentions.0.{before}.")
        is_matrix = ".attentions." in name and value.ndim == 2
        old[name] = value[:, :, None, None] if is_matrix else value
    assert "encoder.mid_block.attentions.0.query.weight" in old
    for names in (old, new, {f"module.{name}": value for name, value in old.items()}):
        found = image_names(names)
        assert found.keys() == new.keys()
        assert all(np.array_equal(found[name], value) for name, value in new.items())
    save_file(old, tmp_path / "old.safetensors")
    loaded = build(settings(type="VideoAutoencoderKL", pretrained="old.safetensors"), folder=tmp_path)
    assert all(np.array_equal(state_dict(loaded.network)[f"module.{name}"], value) for name, value in new.items())


def test_statistics_of_latents(tmp_path: Path) -> None:
    """The configuration's, else the file's, else upstream's; a single number stands for all channels."""

    def scale_of(name: str, **over: Any) -> list[float]:
        loaded = build(settings(pretrained=name, **over), folder=tmp_path)
        return [round(float(value), 3) for value in loaded.network.scale.asnumpy().reshape(-1)]

    network = build_network(settings(scale=(1.0, 2.0, 3.0, 4.0), shift=0.5), 1)
    saved(network, tmp_path / "own.safetensors")
    weights = state_dict(network)
    save_file({**weights, "scale": np.array(7.0, np.float32)}, tmp_path / "scalar.safetensors")
    save_file({name: value for name, value in weights.items() if name != "scale"}, tmp_path / "none.safetensors")
    assert scale_of("own.safetensors") == [1, 2, 3, 4]
    assert scale_of("own.safetensors", scale=9.0) == [9] * 4
    assert scale_of("scalar.safetensors") == [7] * 4
    assert scale_of("none.safetensors") == [3.85, 2.32, 2.33, 3.06]


def test_weights_that_are_refused(tmp_path: Path) -> None:
    network = build_network(settings(), 1)
    weights = state_dict(network)
    name = "temporal_vae.decoder.conv_out.conv.weight"
    save_file({key: value for key, value in weights.items() if key != name}, tmp_path / "missing.safetensors")
    save_file({**weights, name: weights[name][:1], "more": weights[name]}, tmp_path / "wrong.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "wrong.safetensors").read_bytes()[:-100])
    for file, words in (
        ("missing", [f"missing: {name}"]),
        ("wrong", [f"shape: {name} is [1, 4, 3, 3, 3]", "unexpected: more"]),
        ("cut", ["cut short"]),
        ("absent", ["No such file"]),
    ):
        with pytest.raises(PayloadError) as caught:
            build(settings(pretrained=f"{file}.safetensors"), folder=tmp_path)
        assert caught.value.exit_code == BAD_CHECKPOINT and caught.value.next_step
        assert f"{file}.safetensors" in caught.value.where
        assert all(word in caught.value.why for word in words), caught.value.why
    with pytest.raises(PayloadError) as caught:
        build(settings())
    assert caught.value.exit_code == BAD_CONFIG and "no weights" in caught.value.what


def test_published_files_load_whole() -> None:
    """The golden pipeline's weights under their own names, and ours back under theirs."""
    weights = load_file(GOLDEN / "04c_vae_pipeline_v1_2" / "weights.safetensors")
    network = build_network(_golden(), seed=0)
    assert whole_names(weights, network).keys() == state_dict(network).keys() == weights.keys() | {"scale", "shift"}


def _golden() -> AutoencoderConfig:
    return AutoencoderConfig.model_validate(
        {
            "spatial": {"block_out_channels": [8, 8, 16, 16], "layers_per_block": 1, "norm_num_groups": 4},
            "temporal": {"filters": 8, "num_res_blocks": 1, "num_groups": 4},
        }
    )


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"spatial": {"block_out_channels": [4, 6], "norm_num_groups": 4}}, "does not divide 6"),
        ({"temporal": {"channel_multipliers": [1, 2], "temporal_downsample": [True, True]}}, "1 are needed"),
        ({"temporal": {"filters": 20}}, "does not divide 20"),
        ({"scale": [1.0, 2.0]}, "2 numbers for 4 channels"),
        ({"scale": 0.0}, "loses the latents"),
        ({"tiling": {"overlap": 0.7}}, "less than or equal to 0.5"),
    ],
)
def test_sizes_that_do_not_fit_together(over: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AutoencoderConfig.model_validate(over)

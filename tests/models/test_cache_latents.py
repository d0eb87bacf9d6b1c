"""Clips to files of latents: what is in them, ranks, what is kept, and that training on them is training on pixels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from models.cache_latents import read
from models.config import AutoencoderConfig, TrainConfig
from models.config.cache_latents import CacheLatentsConfig
from models.data.batch import MicroBatch, SampleBuilder
from models.data.catalogue import build_catalogue
from models.data.choosing import common_shape, make_order, unfit_rule
from models.data.decode import read_frames
from models.data.encoding import encode_all, targets_of
from models.data.fit import fit_size
from models.data.latents import read_latent_header
from models.data.transforms import resize_crop_to_fill_video, short_side_crop_video
from models.exits import BAD_CONFIG, BAD_DATA, PayloadError
from models.parallel.world import World
from models.settings import fixed_shape
from tests.models.clips import damage, make_clip, make_dataset
from tests.models.runs import events
from tests.models.tasks import make_task
from tests.models.worlds import run_ranks

pytestmark = pytest.mark.train


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_dataset(tmp_path, 3)
    return tmp_path


def config(**over: object) -> CacheLatentsConfig:
    values = {"annotations": "train.csv", "out": "out", "autoencoder": {"type": "identity"}, "image_sizes": [[16, 24]]}
    return CacheLatentsConfig.model_validate({**values, **over})


def encode(folder: Path, world: World | None = None, **over: object) -> tuple[dict[str, object], str]:
    task, said = make_task(folder, world)
    encode_all(config(**over), task)
    return json.loads((folder / "summary.json").read_text()), said.getvalue()


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as found:
        return dict(found)


def test_contents(folder: Path) -> None:
    summary, _ = encode(folder)
    assert (summary["done"], summary["kept"], summary["failed"]) == (3, 0, 0)
    found = arrays(folder / "out" / "clip1.npz")
    assert {key: (value.shape, value.dtype.name) for key, value in found.items()} == {
        "latent_mean": ((24, 3, 16, 24), "float32"),
        "latent_std": ((24, 3, 16, 24), "float32"),
        "fps": ((), "float64"),
        "ori_size": ((2,), "int32"),
    }
    frames = read_frames(folder / "clip1.mp4", np.arange(24))
    assert np.array_equal(found["latent_mean"], resize_crop_to_fill_video(frames, (16, 24)))
    assert found["fps"] == 25.0
    assert found["ori_size"].tolist() == [48, 64]


@pytest.mark.parametrize("chunk", [1, 7, 24, None])
def test_chunks_change_nothing(folder: Path, chunk: int | None) -> None:
    encode(folder, frame_stride=2, num_frames=9, chunk_frames=chunk)
    frames = read_frames(folder / "clip0.mp4", np.arange(0, 18, 2))
    expected = resize_crop_to_fill_video(frames, (16, 24))
    assert np.array_equal(arrays(folder / "out" / "clip0.npz")["latent_mean"], expected)


def test_transforms(folder: Path) -> None:
    frames = read_frames(folder / "clip0.mp4", np.arange(24))
    encode(folder, transform="center", image_sizes=[[16, 20]], out="center", save_distribution=False)
    found = arrays(folder / "center" / "clip0.npz")
    assert "latent_std" not in found
    assert np.array_equal(found["latent_mean"], short_side_crop_video(frames, (16, 20)))
    encode(folder, transform="resize_by_max_value", image_sizes=[], max_image_size=32, multiple=4, out="fit")
    assert arrays(folder / "fit" / "clip0.npz")["latent_mean"].shape[2:] == fit_size(48, 64, 32, 4) == (28, 36)
    _, said = encode(folder, image_sizes=[[8, 8], [16, 8]], out="several")
    assert (
        sorted(path.parent.name for path in (folder / "several").rglob("*.npz"))
        == ["latent_16x8"] * 3 + ["latent_8x8"] * 3
    )
    assert "6 files of latents" in said


def test_what_is_whole_is_kept_and_other_settings_are_refused(folder: Path) -> None:
    encode(folder)
    files = sorted((folder / "out").glob("*.npz"))
    files[0].write_bytes(files[0].read_bytes()[:200])
    made = files[1].stat().st_mtime_ns
    summary, _ = encode(folder)
    assert (summary["done"], summary["kept"]) == (1, 2)
    assert files[1].stat().st_mtime_ns == made
    with pytest.raises(PayloadError, match="made in another way") as caught:
        encode(folder, frame_stride=2)
    assert caught.value.exit_code == BAD_CONFIG
    assert caught.value.why == "frame_stride was 1, is 2"
    summary, _ = encode(folder, frame_stride=2, overwrite=True)
    assert summary["done"] == 3
    assert read_latent_header(files[1]).frames == 12


def test_ranks_share_the_clips(folder: Path) -> None:
    run_ranks(2, lambda world: encode_all(config(), make_task(folder, world)[0]))
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["done"], len(list((folder / "out").glob("*.npz")))) == (3, 3)


def test_clips_that_cannot_be_encoded_are_named(folder: Path) -> None:
    damage(folder / "clip1.mp4")
    (folder / "clip2.mp4").unlink()
    summary, said = encode(folder)
    assert (summary["done"], summary["failed"]) == (1, 2)
    assert "clip1.mp4" in said and "clip2.mp4 (No such file or directory)" in said
    assert [event["line"] for event in events(folder, "clip_skipped")] == [3, 4]
    assert not (folder / "out" / "clip1.npz").exists()
    make_clip(folder / "clip2.mp4", size=(64, 32))
    _, said = encode(folder, transform="center", image_sizes=[[16, 20]], out="center")
    assert "is 16 wide when its short side is 16, 20 are needed" in said
    for number in range(3):
        (folder / f"clip{number}.mp4").unlink(missing_ok=True)
    with pytest.raises(PayloadError, match="none of the 3 clips could be encoded") as caught:
        encode(folder, out="nothing")
    assert caught.value.exit_code == BAD_DATA


def test_clips_that_share_a_name(folder: Path) -> None:
    (folder / "train.csv").write_text("video\nclip0.mp4\nclip0.avi\n")
    with pytest.raises(PayloadError, match="two clips for one file") as caught:
        targets_of(config(), folder)
    assert caught.value.where.endswith("train.csv:3")
    (folder / "train.csv").write_text("video\n../clip0.mp4\n")
    with pytest.raises(PayloadError, match="have no place"):
        targets_of(config(), folder)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"image_sizes": []}, "crop_resize takes image_sizes"),
        ({"transform": "resize_by_max_value"}, "takes max_image_size and no image_sizes"),
        ({"image_sizes": [[8, 8], [8, 8]]}, "a size twice"),
        ({"autoencoder": {"type": "OpenSoraVAE_V1_2"}, "chunk_frames": 16}, "at least the autoencoder's"),
        ({"out": ""}, ""),
    ],
)
def test_bad_configurations(tmp_path: Path, values: dict, why: str) -> None:
    own = {"annotations": "a.csv", "out": "o", "image_sizes": [[8, 8]], "autoencoder": {"type": "identity"}, **values}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(own))
    with pytest.raises(PayloadError) as caught:
        read(tmp_path / "c.yaml")
    assert caught.value.exit_code == BAD_CONFIG
    assert why in caught.value.why


def _batches(folder: Path, autoencoder: AutoencoderConfig, **data: object) -> list[MicroBatch]:
    """The batches of three steps."""
    values = {
        "model": {"in_channels": autoencoder.latent_channels, "caption_channels": 8, "model_max_length": 4},
        "autoencoder": autoencoder.model_dump(),
        "data": {"annotations": "train.csv", "videos": ".", "text_embeddings": "text", "num_frames": 4,
                 "frame_interval": 2, **data},
        "batch_size": 2,
    }  # fmt: skip
    settings = TrainConfig.model_validate(values)
    rule = unfit_rule(settings, fixed_shape(settings.data))
    clips = build_catalogue(settings.data, folder, World(), 8, rule).clips
    shape = fixed_shape(settings.data) or common_shape(settings, clips)
    order = make_order(settings, 1, clips, shape)
    builder = SampleBuilder(settings, clips, lambda random, shape: float(random.random()))
    found = []
    for step in range(3):
        batch = order.batch(step)
        built = [builder.build(sample, batch.shape, step, slot) for slot, sample in enumerate(batch.samples)]
        found.append(builder.stack(built, batch.shape))
    return found


OTHERS = ("noise", "t", "y", "mask", "fps", "height", "width", "num_frames", "weights")


def test_training_on_latents_is_training_on_pixels(folder: Path) -> None:
    encode(folder, chunk_frames=10)
    identity = AutoencoderConfig(type="identity")
    pixels = _batches(folder, identity, image_size=[16, 24])
    for options in ({}, {"image_size": [16, 24]}):
        latents = _batches(folder, identity, latents="out", **options)
        for left, right in zip(pixels, latents, strict=True):
            assert all(np.array_equal(getattr(left, name), getattr(right, name)) for name in ("x", *OTHERS))


def _tiny(kind: str) -> dict[str, object]:
    return {
        "type": kind,
        "spatial": {"block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4},
        "temporal": {"filters": 8, "num_res_blocks": 1, "channel_multipliers": [1, 1, 1],
                     "temporal_downsample": [True, True], "num_groups": 4},
        "micro_frame_size": 8, "dtype": "fp32",
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "latents"), [("VideoAutoencoderKL", 20), ("OpenSoraVAE_V1_2", 5)])
def test_chunks_of_autoencoders_are_those_of_the_whole_clip(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, latents: int
) -> None:
    from mindspore import Tensor

    from models import vae

    settings = AutoencoderConfig.model_validate(_tiny(kind))
    built = vae.wrap(settings, vae.build_network(settings, seed=3))
    monkeypatch.setattr(vae, "build", lambda config, folder: built)
    encode(folder, autoencoder=settings.model_dump(), chunk_frames=11, num_frames=20)
    frames = resize_crop_to_fill_video(read_frames(folder / "clip0.mp4", np.arange(20)), (16, 24))
    clip = Tensor(np.ascontiguousarray(frames.transpose(1, 0, 2, 3)[None]))
    mean, std = (part.asnumpy()[0].transpose(1, 0, 2, 3) for part in built.posterior(clip))
    found = arrays(folder / "out" / "clip0.npz")
    assert found["latent_mean"].shape == (latents, 4, 8, 12)
    np.testing.assert_allclose(found["latent_mean"], mean, atol=1e-5)
    np.testing.assert_allclose(found["latent_std"], std, atol=1e-5)
    assert found["latent_std"].min() > 0


def test_cached_image_latents_are_those_that_training_would_draw(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from models import vae
    from models.vae.encode_batch import BatchEncoder

    settings = AutoencoderConfig.model_validate(_tiny("VideoAutoencoderKL"))
    built = vae.wrap(settings, vae.build_network(settings, seed=3))
    monkeypatch.setattr(vae, "build", lambda config, folder: built)
    encode(folder, autoencoder=settings.model_dump())
    encoder = BatchEncoder(built, TrainConfig().seed)
    pixels = _batches(folder, settings, image_size=[16, 24])
    for left, right in zip(pixels, _batches(folder, settings, latents="out"), strict=True):
        drawn = encoder.encode(left)
        np.testing.assert_allclose(right.x, drawn.x, atol=1e-5)
        assert drawn.x.std() > 0
        assert all(np.array_equal(getattr(drawn, name), getattr(right, name)) for name in OTHERS)

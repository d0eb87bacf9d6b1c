"""Cached latents: windows, samples of their distribution, resolutions by lot, buckets, and bad files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from models import rng
from models.config import AutoencoderConfig, TrainConfig
from models.data.batch import SampleBuilder
from models.data.bucket import Buckets, Shape
from models.data.catalogue import Catalogue, build_catalogue
from models.data.choosing import check_latents, common_shape, make_order, unfit_rule
from models.data.decode import DecodeError, Header
from models.data.latents import LatentFile, LatentReader, LatentShapes, LatentTime, read_latent_header
from models.data.order import Sample
from models.exits import BAD_DATA, PayloadError
from models.parallel.world import World
from models.settings import fixed_shape
from tests.models.clips import write_embedding

IMAGES = AutoencoderConfig(type="VideoAutoencoderKL")
CLIPS = AutoencoderConfig(type="OpenSoraVAE_V1_2")


def write(
    path: Path,
    frames: int = 12,
    size: tuple[int, int] = (2, 3),
    channels: int = 4,
    std: float | None = 0.5,
    **more: object,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    mean = np.arange(frames, dtype=np.float32)[:, None, None, None] + np.zeros((frames, 4, *size), np.float32)
    arrays: dict[str, object] = {"latent_mean": mean, "fps": np.float64(24.0), "ori_size": np.array([9, 16])}
    if std is not None:
        arrays["latent_std"] = np.full_like(mean, std)
    np.savez(path, **{key: value for key, value in {**arrays, **more}.items() if value is not None})
    return path


@pytest.mark.parametrize(("latents", "frames"), [(1, 4), (5, 17), (6, 21), (10, 34), (15, 51), (30, 102), (4, 16)])
def test_most_frames_of_latents(latents: int, frames: int) -> None:
    time = LatentTime(CLIPS)
    assert time.frames(latents) == frames
    assert time.latents(frames) == latents


def test_windows_of_image_latents_are_those_of_a_video() -> None:
    time = LatentTime(IMAGES)
    assert time.window(12, 4, 2, 0.0).tolist() == [0, 2, 4, 7]
    assert time.window(12, 4, 2, 0.999).tolist() == [3, 5, 7, 10]
    assert time.problem(3, 4, 1) == "has 3 latent frames, 4 are needed"
    assert time.problem(4, 4, 3) == ""


def test_windows_of_clip_latents_start_at_chunks() -> None:
    time = LatentTime(CLIPS)
    starts = {int(time.window(22, 34, 1, draw)[0]) for draw in np.linspace(0, 0.999, 50)}
    assert starts == {0, 5, 10}  # 22 = four whole chunks and a rest
    assert len(time.window(22, 34, 1, 0.5)) == 10
    assert time.window(6, 20, 1, 0.7).tolist() == list(range(6))


@pytest.mark.parametrize(
    ("latents", "frames", "problem"),
    [
        (5, 17, ""),
        (12, 17, ""),
        (6, 20, ""),
        (7, 20, "6 are needed exactly: 20 frames are no multiple of 17"),
        (4, 17, "has 4 latent frames, 5 are needed for 17 frames"),
        (1, 4, ""),
    ],
)
def test_lengths_that_can_be_cut(latents: int, frames: int, problem: str) -> None:
    assert LatentTime(CLIPS).problem(latents, frames, 1).endswith(problem)
    assert bool(LatentTime(CLIPS).problem(latents, frames, 1)) == bool(problem)


def test_samples_are_mean_and_noise_times_the_scale(tmp_path: Path) -> None:
    file = LatentFile(write(tmp_path / "a.npz"), Header(12, 2, 3, 24.0))
    reader = LatentReader(IMAGES, 1)
    z = reader.read([file], Shape(4, 16, 24), 4, 0.0, rng.stream(0, "x"))
    noise = rng.stream(0, "x").standard_normal((4, 4, 2, 3), np.float32)
    frames = np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1)
    np.testing.assert_allclose(z, (frames + 0.5 * noise) * np.float32(0.18215), rtol=1e-6)
    assert (z.shape, z.dtype) == ((4, 4, 2, 3), np.float32)
    plain = LatentFile(write(tmp_path / "b.npz", std=None), Header(12, 2, 3, 24.0))
    mean = reader.read([plain], Shape(4, 16, 24), 4, 0.0, rng.stream(0, "x"))
    np.testing.assert_allclose(mean, np.broadcast_to(frames * np.float32(0.18215), mean.shape), rtol=1e-6)


def test_latents_of_clips_are_scaled_already(tmp_path: Path) -> None:
    file = LatentFile(write(tmp_path / "a.npz", frames=5, std=0.0), Header(5, 2, 3, 24.0))
    z = LatentReader(CLIPS, 1).read([file], Shape(17, 16, 24), 4, 0.9, rng.stream(0, "x"))
    assert z[0, :, 0, 0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"latent_mean": None}, "no array 'latent_mean'"),
        ({"latent_mean": np.zeros((3, 4, 2), np.float32)}, "not [T, C, h, w]"),
        ({"latent_mean": np.zeros((0, 4, 2, 2), np.float32)}, "not [T, C, h, w]"),
        ({"latent_std": np.zeros((3, 4, 2, 2), np.float32)}, "latent_std has shape [3, 4, 2, 2]"),
    ],
)
def test_malformed_files(tmp_path: Path, arrays: dict, problem: str) -> None:
    with pytest.raises(DecodeError) as caught:
        read_latent_header(write(tmp_path / "a.npz", **arrays))
    assert problem in str(caught.value)


def test_damaged_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz")
    path.write_bytes(path.read_bytes()[:90])
    with pytest.raises(DecodeError, match="not a readable npz"):
        read_latent_header(path)
    odd = write(tmp_path / "b.npz", latent_mean=np.full((12, 4, 2, 3), np.nan, np.float32))
    size = read_latent_header(odd)
    with pytest.raises(DecodeError, match="not finite"):
        LatentReader(IMAGES, 1).read([LatentFile(odd, size)], Shape(4, 16, 24), 4, 0.0, rng.stream(0, "x"))
    with pytest.raises(DecodeError, match="not \\[12, 16, 2, 3\\]"):
        LatentReader(IMAGES, 1).read([LatentFile(odd, size)], Shape(4, 16, 24), 16, 0.0, rng.stream(0, "x"))


def settings(**over: object) -> TrainConfig:
    values: dict = {
        "model": {"caption_channels": 8, "model_max_length": 4},
        "autoencoder": {"type": "VideoAutoencoderKL"},
        "data": {"annotations": "train.csv", "text_embeddings": "text", "latents": "latents", "num_frames": 4},
        "batch_size": 2,
    }
    for key, value in over.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return TrainConfig.model_validate(values)


def data_set(folder: Path, clips: int = 4, folders: tuple[str, ...] = ("",), **options: object) -> None:
    rows = ["video,caption"]
    for number in range(clips):
        rows.append(f"clip{number}.mp4,clip number {number}")
        write_embedding(folder / "text" / f"clip{number}.npz", f"clip number {number}")
        for name in folders:
            size = tuple(int(part) // 8 for part in name.split("_")[1].split("x")) if name else (2, 3)
            write(folder / "latents" / name / f"clip{number}.npz", size=size, **options)
    (folder / "train.csv").write_text("\n".join(rows) + "\n")


def build(folder: Path, config: TrainConfig) -> Catalogue:
    check_latents(config, folder)
    rule = unfit_rule(config, fixed_shape(config.data))
    return build_catalogue(config.data, folder, World(), 8, rule)


def test_a_catalogue_of_latents(tmp_path: Path) -> None:
    data_set(tmp_path)
    (tmp_path / "latents" / "clip1.npz").unlink()
    write(tmp_path / "latents" / "clip2.npz", frames=3)
    found = build(tmp_path, settings())
    assert [clip.name for clip in found.clips] == ["clip0.mp4", "clip3.mp4"]
    assert found.clips[0].header == Header(12, 2, 3, 24.0)
    assert {clip.name: clip.reason for clip in found.skipped} == {
        "clip1.mp4": "No such file or directory",
        "clip2.mp4": "has 3 latent frames, 4 are needed",
    }
    assert common_shape(settings(), found.clips) == Shape(4, 16, 24)
    (tmp_path / "latents" / "cache.json").write_text(json.dumps({"frame_stride": 3}))
    assert build(tmp_path, settings()).clips[0].header.fps == 8.0
    (tmp_path / "train.csv").write_text("video,caption,fps\nclip0.mp4,a,30\n")
    assert build(tmp_path, settings()).clips[0].header.fps == 10.0


def test_latents_without_fps_need_a_column(tmp_path: Path) -> None:
    data_set(tmp_path, 2, fps=None)
    with pytest.raises(PayloadError) as caught:
        build(tmp_path, settings())
    assert "give the annotations a column fps" in caught.value.why
    (tmp_path / "train.csv").write_text("video,caption,fps\nclip0.mp4,a,30\nclip1.mp4,b,x\n")
    assert [clip.name for clip in build(tmp_path, settings()).clips] == ["clip0.mp4"]


def test_one_resolution_by_lot_for_each_use(tmp_path: Path) -> None:
    data_set(tmp_path, 4, ("latent_16x24", "latent_24x16"))
    (tmp_path / "latents" / "latent_24x16" / "clip3.npz").unlink()
    config = settings()
    clips = build(tmp_path, config).clips
    assert [len(clip.latents) for clip in clips] == [2, 2, 2, 1]
    assert common_shape(config, clips) is None
    order = make_order(config, 1, clips, None)
    shapes = [order.batch(step).shape for step in range(30)]
    assert set(shapes) == {Shape(4, 16, 24), Shape(4, 24, 16)}
    assert [make_order(config, 1, clips, None).batch(step).shape for step in range(30)] == shapes
    builder = SampleBuilder(config, clips, lambda random, shape: 0.5)
    for step in range(6):
        batch = order.batch(step)
        built = [builder.build(sample, batch.shape, step, slot) for slot, sample in enumerate(batch.samples)]
        assert all(one.failure is None for one in built)
        micro = builder.stack(built, batch.shape)
        assert micro.x.shape == micro.noise.shape == (2, 4, 4, batch.shape.height // 8, batch.shape.width // 8)
        assert micro.height.tolist() == [batch.shape.height] * 2
    other = settings(data={"image_size": [24, 16]})
    only = build(tmp_path, other).clips
    assert [clip.name for clip in only] == ["clip0.mp4", "clip1.mp4", "clip2.mp4"]
    assert make_order(other, 1, only, fixed_shape(other.data)).batch(0).shape == Shape(4, 24, 16)


def test_buckets_decide_on_frames_and_batch_sizes(tmp_path: Path) -> None:
    data_set(tmp_path, 4, ("latent_256x256",), frames=20)
    buckets = {"256": {8: [1.0, 3], 16: [[1.0, 0.5], 2]}, "144p": {4: [1.0, 1]}}
    config = settings(data={"bucket_config": buckets})
    clips = build(tmp_path, config).clips
    order = make_order(config, 1, clips, None)
    seen = {(batch.shape, len(batch.samples)) for batch in (order.batch(step) for step in range(20))}
    assert seen == {(Shape(8, 256, 256), 3), (Shape(16, 256, 256), 2)}


def test_temporal_latents_may_fill_their_bucket() -> None:
    rule = LatentShapes(CLIPS, 16, 1, 1, None, Buckets({"144p": {51: (1.0, 2), 102: (1.0, 1)}}))
    size = Header(15, 18, 32, 24.0)
    assert rule.problem(size) == ""
    choice = rule.choose([LatentFile(Path("a"), size)], lambda number: rng.stream(0, "x", number))
    assert choice is not None
    assert (choice.shape, choice.batch_size) == (Shape(51, 144, 256), 2)
    assert rule.problem(Header(14, 18, 32, 24.0)).startswith("fits no bucket")


def test_a_file_lost_in_between_weighs_nothing(tmp_path: Path) -> None:
    data_set(tmp_path, 1)
    config = settings()
    clips = build(tmp_path, config).clips
    clips[0].latents[0].path.unlink()
    built = SampleBuilder(config, clips, lambda random, shape: 0.5).build(Sample(0, 0, 0), Shape(4, 16, 24), 0, 0)
    assert built.failure is not None and "cannot be read" in built.failure.reason
    assert not built.x.any()


def test_latents_of_another_autoencoder_are_refused(tmp_path: Path) -> None:
    data_set(tmp_path, 1)
    (tmp_path / "latents" / "cache.json").write_text(json.dumps({"autoencoder": {"type": "identity"}}))
    with pytest.raises(PayloadError, match="come from another autoencoder") as caught:
        build(tmp_path, settings())
    assert caught.value.exit_code == BAD_DATA
    assert "type was identity there" in caught.value.why
    (tmp_path / "latents" / "cache.json").write_text("{")
    with pytest.raises(PayloadError, match="settings of the cached latents"):
        build(tmp_path, settings())


def test_no_folder_of_latents(tmp_path: Path) -> None:
    data_set(tmp_path, 1)
    with pytest.raises(PayloadError, match="folder of cached latents does not exist"):
        build(tmp_path, settings(data={"latents": "none"}))

"""Autoencoder training: its three stages, mixed lengths, the discriminator, and resumes bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor

from models.config.train_vae import TrainVaeConfig
from models.data.batch import Failure
from models.data.bucket import Shape
from models.data.catalogue import Clip
from models.data.clip_batch import ClipBatch, ClipBuilder, MixedOrder
from models.data.decode import read_header
from models.data.order import FixedOrder, Sample
from models.exits import BAD_CONFIG, PayloadError
from models.parallel.mesh import Mesh
from models.parallel.world import World
from models.train_vae import read
from models.vae import build
from models.vae.lpips import random_features
from models.vae_step import VaeStep
from models.weights import state_dict
from tests.models.vae_runs import RANDOM, clips, config, metrics, trained

pytestmark = pytest.mark.train


def changed(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> set[str]:
    """Parts of the network whose weights differ."""
    return {name.split(".")[0] for name in before if not np.array_equal(before[name], after[name])}


def step_of(settings: TrainVaeConfig) -> VaeStep:
    distance = random_features((2, 2, 2, 2, 2), 0) if settings.use_real_rec_loss else None
    step = VaeStep(settings, Mesh(World(), settings.layout), distance)
    step.prepare()
    return step


def batch_of(settings: TrainVaeConfig, samples: int, frames: int = 4, failed: tuple[int, ...] = ()) -> ClipBatch:
    random = np.random.default_rng(0)
    size = (frames, 16, 16)
    weights = np.array([number not in failed for number in range(samples)], np.float32)
    return ClipBatch(
        x=random.uniform(-1, 1, (samples, 3, *size)).astype(np.float32),
        noise=tuple(
            random.standard_normal((samples, *shape)).astype(np.float32)
            for shape in settings.autoencoder.noise_shapes(size)
        ),
        weights=weights,
        step=0,
        failures=(),
    )


def part(batch: ClipBatch, rows: slice) -> ClipBatch:
    return ClipBatch(batch.x[rows], tuple(n[rows] for n in batch.noise), batch.weights[rows], batch.step, ())


def test_stage_1_leaves_the_image_part_alone_and_sees_single_frames(tmp_path: Path) -> None:
    settings = config("stage1", steps=3, seed=1)
    step = VaeStep(settings, Mesh(World(), settings.layout), None)
    trainer = trained(tmp_path, settings)
    assert changed(state_dict(step.model), state_dict(trainer.train.model)) == {"temporal_vae"}
    seen = metrics(tmp_path)
    order = MixedOrder(FixedOrder(settings.seed, 3, Shape(4, 16, 16), 2), settings)
    frames = [order.batch(number).shape.frames for number in range(3)]
    assert [entry["shape"] for entry in seen] == [f"{count}x16x16" for count in frames]
    assert {1, 4} == set(frames)
    for count, entry in zip(frames, seen, strict=True):
        assert set(entry["losses"]) == ({"z_rec", "identity"} if count == 1 else {"z_rec"})
        assert entry["loss"] == pytest.approx(sum(entry["losses"].values()), rel=1e-6)


def test_stage_2_teaches_both_parts_and_goes_on_from_stage_1(tmp_path: Path) -> None:
    first = trained(tmp_path / "one", config("stage1", steps=1))
    before = state_dict(first.train.model)
    settings = config("stage2", steps=1, init_from=str(tmp_path / "one" / "checkpoints" / "step-1"))
    trainer = trained(tmp_path / "two", settings)
    after = state_dict(trainer.train.model)
    assert changed(before, after) == {"spatial_vae", "temporal_vae"}
    # One step of AdamW moves a weight by the learning rate at most: it did start from there.
    assert max(np.abs(after[name] - before[name]).max() for name in before) < 1.1e-3


def test_stage_3_with_everything_resumes_bit_for_bit(tmp_path: Path) -> None:
    over = {
        "adversarial": {"ndf": 2, "n_layers": 1, "start": 1},
        "ema_decay": 0.9,
        "autoencoder": {"micro_frame_size": None},
    }
    straight = config("stage3", steps=3, checkpoint={"every": 2}, **over)
    trained(tmp_path / "straight", straight)
    trained(tmp_path / "broken", config("stage3", steps=2, checkpoint={"every": 2}, **over))
    again = trained(tmp_path / "broken", straight)
    assert again.train.critic.update.count == 2
    told = [[(entry["step"], entry["loss"], entry["losses"]) for entry in metrics(tmp_path / name)]
            for name in ("straight", "broken")]  # fmt: skip
    assert told[0] == told[1] and len(told[0]) == 3
    shard = "checkpoints/step-3/shard-00000-of-00001.safetensors"
    assert (tmp_path / "straight" / shard).read_bytes() == (tmp_path / "broken" / shard).read_bytes()
    # With or without a discriminator in it a checkpoint is an autoencoder to everybody else.
    named = straight.autoencoder.model_copy(update={"pretrained": "step-3"})
    frozen = build(named, folder=tmp_path / "broken" / "checkpoints")
    assert changed(state_dict(frozen.network), state_dict(again.train.model)) == set()
    seen = metrics(tmp_path / "straight")
    assert len({entry["shape"] for entry in seen}) > 1  # random numbers of frames
    assert "generator" not in seen[0]["losses"] and {"generator", "discriminator"} <= set(seen[1]["losses"])


def test_losses_and_gradients_do_not_depend_on_the_batching() -> None:
    settings = config("stage3", mixed_strategy=None)
    whole, halves = step_of(settings), step_of(settings)
    batch = batch_of(settings, 4, failed=(1,))
    one = whole.run([batch], 1e-3)
    two = halves.run([part(batch, slice(0, 2)), part(batch, slice(2, 4))], 1e-3)
    assert (one.weight, two.weight) == (3, 3)
    assert two.loss == pytest.approx(one.loss, rel=1e-6)
    assert two.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)
    # What a failed sample holds does not count.
    other = step_of(settings)
    batch.x[1] = 0.5
    assert other.run([batch], 1e-3).loss == pytest.approx(one.loss, rel=1e-6)


def test_recomputing_changes_no_gradient() -> None:
    plain = config("stage3", autoencoder={"micro_batch_size": 3})
    again = config("stage3", autoencoder={"micro_batch_size": 3}, recompute=True)
    results = [step_of(settings).run([batch_of(settings, 2)], 1e-3) for settings in (plain, again)]
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-6)
    assert results[0].grad_norm == pytest.approx(results[1].grad_norm, rel=1e-5)


def test_the_discriminator_learns_alone() -> None:
    settings = config("stage3", adversarial={"ndf": 2, "n_layers": 1, "loss": "non-saturating", "lr": 1e-2})
    step = step_of(settings)
    critic = step.critic
    assert critic is not None
    batch = batch_of(settings, 2)
    model, discriminator = state_dict(step.model), state_dict(critic.model)
    first = critic.run([(Tensor(batch.x), Tensor(batch.x * 0.1))], 1e-2, 0)
    assert changed(model, state_dict(step.model)) == set()
    moved = {name for name, value in state_dict(critic.model).items() if not np.array_equal(value, discriminator[name])}
    assert moved == set(discriminator)  # statistics, too
    losses = [critic.run([(Tensor(batch.x), Tensor(batch.x * 0.1))], 1e-2, number) for number in range(1, 6)]
    assert losses[-1] < first


def test_the_adaptive_weight_balances_gradients_at_the_last_layer() -> None:
    quiet = config("stage3", mixed_strategy=None)
    loud = config("stage3", mixed_strategy=None, adversarial={"ndf": 2, "n_layers": 1, "generator_factor": 2.0})
    found = [_last_gradient(step_of(settings), batch_of(quiet, 2)) for settings in (quiet, loud)]
    assert np.linalg.norm(found[1] - found[0]) == pytest.approx(2 * np.linalg.norm(found[0]), rel=1e-2)


def _last_gradient(step: VaeStep, batch: ClipBatch) -> np.ndarray:
    """What a step gathers at the last convolution of the image decoder."""
    place = step._gradients.place("spatial_vae.module.decoder.conv_out.weight")
    kept: list[np.ndarray] = []
    honest = step._gradients.add

    def add(gradients: Sequence[Tensor]) -> None:
        kept.append(gradients[place].asnumpy())
        honest(gradients)

    step._gradients.add = add  # type: ignore[method-assign]
    step.run([batch], 1e-3)
    return kept[0]


def test_an_image_autoencoder_learns_from_single_frames(tmp_path: Path) -> None:
    over = {"autoencoder": {"type": "VideoAutoencoderKL"}, "mixed_strategy": "image_only", "steps": 2}
    trained(tmp_path, config("stage3", **over))
    seen = metrics(tmp_path)
    assert [entry["shape"] for entry in seen] == ["1x16x16"] * 2
    assert all(set(entry["losses"]) == {"rec", "kl"} and np.isfinite(entry["loss"]) for entry in seen)


def test_samples_are_cropped_mirrored_and_fail_as_such(tmp_path: Path) -> None:
    settings = config("stage3")
    paths = sorted(clips().glob("*.mp4"))
    known = [Clip(path.name, path, read_header(path), None) for path in paths]
    gone = Clip("gone.mp4", tmp_path / "gone.mp4", known[0].header, None)
    builder = ClipBuilder(settings, [*known, gone])
    shape = Shape(4, 16, 16)
    built = [builder.build(Sample(0, epoch, 0), shape, 0, 0) for epoch in range(6)]
    again = builder.build(Sample(0, 0, 0), shape, 0, 0)
    assert np.array_equal(built[0].x, again.x) and all(map(np.array_equal, built[0].noise, again.noise))
    assert len({sample.x.tobytes() for sample in built}) == 6
    middle = ClipBuilder(config("stage3", data={"random_crop": False, "flip": False}), known)
    assert middle.build(Sample(0, 0, 0), shape, 0, 0).x.shape == built[0].x.shape == (3, 4, 16, 16)
    # The first frames of the window, whatever their number.
    short = middle.build(Sample(0, 3, 0), Shape(2, 16, 16), 0, 0).x
    assert np.array_equal(short, middle.build(Sample(0, 3, 0), shape, 0, 0).x[:, :2])
    failed = builder.build(Sample(3, 0, 0), shape, 0, 1)
    assert isinstance(failed.failure, Failure) and not failed.x.any()
    batch = builder.stack([built[0], failed], shape)
    assert batch.weights.tolist() == [1, 0] and batch.failures[0].clip is gone


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"autoencoder": {"type": "identity"}}, "nothing to train"),
        ({"use_real_rec_loss": False}, "no loss is chosen"),
        ({"layout": {"sp": 2}}, "data-parallel only"),
        ({"layout": {"zero": 3}}, "zero 0, 1 or 2"),
        ({"data": {"image_size": [15, 16]}}, "multiples of 2"),
        ({"data": {"latents": "cached"}}, "train on pixels"),
        ({"data": {"bucket_config": {"144p": {1: [1.0, 1]}}}}, "train on one size"),
        ({"adversarial": {}, "use_real_rec_loss": False, "use_z_rec_loss": True}, "looks at pixels"),
        ({"autoencoder": {"type": "VideoAutoencoderKL"}, "use_z_rec_loss": True}, "no temporal part"),
        ({"steps": None}, "how long to train"),
    ],
)
def test_what_cannot_be_trained_is_refused(over: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config("stage3", **over)


def test_perceptual_loss_without_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train_vae.yaml"
    path.write_text("recipe: vae/stage3\n")
    with pytest.raises(PayloadError) as caught:
        read(path)
    assert (
        caught.value.exit_code == BAD_CONFIG and "perceptual.vgg: the perceptual loss needs weights" in caught.value.why
    )
    path.write_text("recipe: vae/stage3\nperceptual_loss_weight: 0\n")
    assert read(path).epochs == 400
    path.write_text("recipe: vae/stage1\n")  # latents alone: no perceptual loss there
    assert read(path).freeze_vae_2d
    assert config("stage3", perceptual=RANDOM).needs_lpips is False


def test_names_of_checkpoints_are_the_original_ones() -> None:
    settings = config("stage3", adversarial={"ndf": 2, "n_layers": 1})
    names = {name for kind, name in step_of(settings).tensors() if kind == "model"}
    assert {"spatial_vae.module.decoder.conv_out.weight", "temporal_vae.encoder.conv_in.conv.weight", "scale",
            "discriminator.main.3.running_mean"} <= names  # fmt: skip

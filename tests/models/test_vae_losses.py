"""Losses and measures of autoencoders: formulas against plain ones, files of LPIPS, what is refused."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from safetensors.numpy import load_file, save_file

from models.config.train_vae import PerceptualConfig
from models.exits import BAD_CHECKPOINT, BAD_CONFIG, PayloadError
from models.vae.adversarial import adaptive_weight, generator_loss, generator_losses
from models.vae.discriminator import PatchDiscriminator, build_discriminator
from models.vae.losses import loss_v1_2, nll, per_clip
from models.vae.lpips import LPIPS, from_weights, random_features
from models.vae.metrics import IDENTICAL_PSNR, as_unit, psnr, ssim
from models.vae.perceptual import build_perceptual
from models.weights import state_dict

GOLDEN = Path(__file__).parents[1] / "data" / "golden"

pytestmark = pytest.mark.train


def clips(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, shape).astype(np.float32)


def test_psnr_of_a_known_error() -> None:
    a = np.full((2, 3, 16, 16), 0.5)
    assert psnr(a, a + 0.1) == pytest.approx([20.0, 20.0])
    assert psnr(a, a).tolist() == [IDENTICAL_PSNR] * 2
    assert as_unit(np.array([-2.0, -1.0, 0.0, 1.0])).tolist() == [0.0, 0.0, 0.5, 1.0]


@pytest.mark.parametrize("form", ["gaussian", "uniform"])
def test_ssim_equals_its_definition_window_by_window(form: str) -> None:
    a, b = clips(1, 1, 14, 13), clips(1, 1, 14, 13, seed=1)
    size = 11 if form == "gaussian" else 7
    weights = np.full((7, 7), 1 / 49)
    if form == "gaussian":
        line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
        weights = np.outer(line, line) / np.outer(line, line).sum()
    found = []
    for row in range(14 - size + 1):
        for column in range(13 - size + 1):
            x, y = (part[0, 0, row : row + size, column : column + size].astype(float) for part in (a, b))
            mx, my = (weights * x).sum(), (weights * y).sum()
            unbiased = 49 / 48 if form == "uniform" else 1.0
            vx, vy, vxy = (
                unbiased * (weights * p * q).sum() - unbiased * m
                for p, q, m in ((x, x, mx * mx), (y, y, my * my), (x, y, mx * my))
            )
            top = (2 * mx * my + 0.01**2) * (2 * vxy + 0.03**2)
            found.append(top / ((mx**2 + my**2 + 0.01**2) * (vx + vy + 0.03**2)))
    assert ssim(a, b, form) == pytest.approx([np.mean(found)], rel=1e-9)
    assert ssim(a, a, form) == pytest.approx([1.0])


def test_measures_refuse_what_they_cannot_compare() -> None:
    with pytest.raises(ValueError, match="smaller than SSIM's window of 11"):
        ssim(clips(3, 10, 20), clips(3, 10, 20))
    with pytest.raises(ValueError, match="of one shape"):
        psnr(clips(3, 8, 8), clips(3, 8, 9))


def test_losses_of_clips_have_the_loss_of_the_batch_as_their_mean() -> None:
    video, recon = (Tensor(clips(2, 3, 4, 6, 5, seed=seed)) for seed in range(2))
    elements = nll(video, recon, 0.3, None, 0.0)
    whole, weighted = loss_v1_2(elements)
    assert float(per_clip(elements, 2).mean().asnumpy()) == pytest.approx(float(whole.asnumpy()), rel=1e-6)
    assert float(weighted.asnumpy()) == float(whole.asnumpy())
    expected = np.abs(video.asnumpy() - recon.asnumpy()) / np.exp(0.3) + 0.3
    assert per_clip(elements, 2).asnumpy() == pytest.approx(expected.sum((1, 2, 3, 4)) / 4, rel=1e-6)


def test_generator_losses_by_clip_and_bounds_of_the_adaptive_weight() -> None:
    logits = Tensor(clips(3, 1, 2, 4, 4) * 4 - 2)
    for kind in ("hinge", "vanilla", "non-saturating", "wgan-gp"):
        one, each = generator_loss(logits, kind), generator_losses(logits, kind)
        assert float(each.mean().asnumpy()) == pytest.approx(float(one.asnumpy()), rel=1e-5)
    assert adaptive_weight(1.0, 0.0) == pytest.approx(1e4)
    assert adaptive_weight(1e9, 0.0) == 1e4
    assert adaptive_weight(2.0, 1.0) == pytest.approx(2 / 1.0001)


def test_lpips_from_the_two_public_files(tmp_path: Path) -> None:
    whole = load_file(GOLDEN / "b_09_lpips" / "weights.safetensors")
    vgg = {
        f"features.{name.split('.')[2]}.{name.split('.')[3]}": value
        for name, value in whole.items() if name.startswith("net.")
    }  # fmt: skip
    vgg["classifier.0.weight"] = np.zeros((2, 2), np.float32)  # of no use here
    save_file(vgg, tmp_path / "vgg16.safetensors")
    save_file({name: value for name, value in whole.items() if name.startswith("lin")}, tmp_path / "lin.safetensors")
    config = PerceptualConfig(vgg="vgg16.safetensors", lin="lin.safetensors")
    model = build_perceptual(config, tmp_path, seed=0)
    a, b = (Tensor(clips(1, 3, 16, 20, seed=seed) * 2 - 1) for seed in range(2))
    assert np.array_equal(model(a, b).asnumpy(), from_weights(whole, "")(a, b).asnumpy())
    assert float(model(a, a).asnumpy().item()) == 0.0
    assert not [param.name for param in model.get_parameters() if param.requires_grad]
    with pytest.raises(PayloadError, match="LPIPS weights are incomplete: 5 tensors") as caught:
        build_perceptual(PerceptualConfig(vgg="vgg16.safetensors"), tmp_path, seed=0)
    assert caught.value.exit_code == BAD_CHECKPOINT and "lin0.model.1.weight" in caught.value.why
    with pytest.raises(PayloadError, match="LPIPS has no weights") as caught:
        build_perceptual(PerceptualConfig(), tmp_path, seed=0)
    assert caught.value.exit_code == BAD_CONFIG
    with pytest.raises(ValueError, match="16 pixels a side"):
        model(a[:, :, :8], b[:, :, :8])


def test_random_features_are_fixed_and_blank_pictures_have_gradients() -> None:
    a, b = Tensor(np.zeros((1, 3, 16, 16), np.float32)), Tensor(clips(1, 3, 16, 16))
    first, second, other = (random_features((4, 4, 4, 4, 4), seed) for seed in (0, 0, 1))
    assert np.array_equal(first(a, b).asnumpy(), second(a, b).asnumpy())
    assert float(first(a, b).asnumpy().item()) != float(other(a, b).asnumpy().item())
    assert isinstance(first, LPIPS)
    # Where no feature answers its length is 0, whose root has no slope.
    gradient = ms.grad(lambda x: first(x, b).sum())(a).asnumpy()
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(("kind", "shape"), [("NLayerDiscriminator3D", (2, 3, 4, 16, 16)),
                                             ("NLayerDiscriminator", (2, 3, 32, 32))])  # fmt: skip
def test_discriminators_of_both_versions(kind: str, shape: tuple[int, ...]) -> None:
    model = build_discriminator(kind, 4, 2, seed=3)
    again = build_discriminator(kind, 4, 2, seed=3)
    assert all(map(np.array_equal, state_dict(model).values(), state_dict(again).values()))
    logits = model(Tensor(clips(*shape) * 2 - 1))
    assert logits.shape[:2] == (2, 1) and np.isfinite(logits.asnumpy()).all()
    names = set(state_dict(model))
    assert {"main.0.bias", "main.2.weight", "main.3.running_var"} <= names and "main.2.bias" not in names


def test_dropout_is_what_the_mask_says() -> None:
    model = PatchDiscriminator("NLayerDiscriminator3D", 3, 4, 1)
    model.set_train(True)
    x = Tensor(clips(1, 3, 4, 8, 8))
    plain = model(x).asnumpy()
    shapes: list[tuple[int, ...]] = []

    def nothing_left(shape: tuple[int, ...]) -> np.ndarray:
        shapes.append(shape)
        return np.zeros(shape, np.float32)

    model.mask = nothing_left
    assert len(np.unique(model(x).asnumpy())) == 1 < len(np.unique(plain)) or not plain.any()
    assert shapes == [(1, 8, 2, 4, 4)]

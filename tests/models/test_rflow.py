"""Rectified flow: draws, time shift, loss, sampling. Numbers against the original are in test_parity."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from models.config import DiffusionConfig
from models.diffusion.rflow import RFlow, SampleStep, latent_frames, shift_timesteps

pytestmark = pytest.mark.train

SIZE = (np.array([51.0] * 4), np.array([480.0] * 4), np.array([854.0] * 4))


def flow(**options: object) -> RFlow:
    return RFlow(DiffusionConfig(**{"use_timestep_transform": False, **options}))


def test_draws() -> None:
    uniform = np.array([0.0, 0.25, 0.5, 0.9999], np.float32)
    np.testing.assert_allclose(flow(sample_method="uniform").draw_timesteps(uniform, *SIZE), uniform * 1000)
    discrete = flow(sample_method="discrete-uniform").draw_timesteps(uniform, *SIZE)
    np.testing.assert_array_equal(discrete, [0, 250, 500, 999])
    logit = flow(sample_method="logit-normal", loc=0.5, scale=2.0)
    normal = np.array([-1.0, 0.0, 1.0, 3.0], np.float32)
    np.testing.assert_allclose(logit.draw_timesteps(normal, *SIZE), 1000 / (1 + np.exp(-(0.5 + 2 * normal))), rtol=1e-6)
    assert (logit.draw_kind, flow(sample_method="uniform").draw_kind) == ("normal", "uniform")
    assert logit.draw_timesteps(normal, *SIZE).dtype == np.float32


def test_draws_repeat() -> None:
    again = [flow().draw_timesteps(np.arange(4.0), *SIZE) for _ in range(2)]
    np.testing.assert_array_equal(again[0], again[1])


def test_shift_keeps_the_ends_and_moves_towards_noise() -> None:
    t = np.array([0.0, 300.0, 1000.0], np.float32)
    sizes = (np.array([51.0] * 3), np.array([720.0] * 3), np.array([1280.0] * 3))
    shifted = shift_timesteps(t, *sizes)
    assert shifted[0] == 0
    assert shifted[2] == pytest.approx(1000, rel=1e-6)
    ratio = np.sqrt(720 * 1280 / 512**2) * np.sqrt(15)
    assert shifted[1] == pytest.approx(1000 * ratio * 0.3 / (1 + (ratio - 1) * 0.3), rel=1e-6)


def test_latent_frames() -> None:
    np.testing.assert_array_equal(latent_frames([1, 51]), [1, 1])
    np.testing.assert_array_equal(latent_frames([51, 1, 34]), [15, 1, 10])
    np.testing.assert_array_equal(latent_frames([16]), [1])  # upstream: 0, and every timestep collapses


class Echo(nn.Cell):
    """Answers with twice as many channels: its input, then zeros; remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[object, ...]] = []

    def construct(self, x: Tensor, *rest: Tensor) -> Tensor:
        self.seen.append((x, *rest))
        return ms.ops.concat((x, ms.ops.zeros_like(x)), 1)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = np.random.default_rng(0)
    x, noise = (generator.standard_normal((2, 3, 4, 5, 6)).astype(np.float32) for _ in range(2))
    return Tensor(x), Tensor(np.array([250.0, 800.0], np.float32)), Tensor(noise)


def test_loss_is_the_mean_square_of_the_velocity_error() -> None:
    x, t, noise = batch()
    model = Echo()
    loss = flow().loss(model, x, t, noise, None, None, None, None, None, None).asnumpy()
    keep = 1 - np.array([0.25, 0.8]).reshape(-1, 1, 1, 1, 1)
    x_t = keep * x.asnumpy() + (1 - keep) * noise.asnumpy()
    expected = ((x_t - (x.asnumpy() - noise.asnumpy())) ** 2).mean((1, 2, 3, 4))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_loss_with_x_mask_looks_at_noised_frames_only() -> None:
    x, t, noise = batch()
    x_mask = np.array([[True, False, True, True], [False, True, False, False]])
    model = Echo()
    loss = flow().loss(model, x, t, noise, None, None, Tensor(x_mask), None, None, None).asnumpy()
    seen = model.seen[0][0].asnumpy()
    clean = x.asnumpy().transpose(0, 2, 1, 3, 4)[~x_mask]
    np.testing.assert_array_equal(seen.transpose(0, 2, 1, 3, 4)[~x_mask], clean)
    squares = ((seen - (x.asnumpy() - noise.asnumpy())) ** 2).mean((1, 3, 4))
    expected = [(squares[i] * x_mask[i]).sum() / x_mask[i].sum() for i in range(2)]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_schedule() -> None:
    np.testing.assert_array_equal(flow().schedule(4, 2)[:, 0], [1000, 750, 500, 250])
    np.testing.assert_array_equal(flow().schedule(3, 1, discrete=True)[:, 0], [1000, 667, 333])


def _sample(**options: object) -> tuple[np.ndarray, list[SampleStep], np.ndarray]:
    z, _, noise = batch()
    steps: list[SampleStep] = []
    y = Tensor(np.zeros((2, 1, 2, 3), np.float32))
    size = [Tensor(np.full(2, value, np.float32)) for value in (24.0, 64.0, 64.0, 17.0)]
    final = flow().sample(
        Echo(), z, y, y, None, *size, steps=4, guidance_scale=3.0, observe=steps.append,
        noise=lambda index: noise, **options,
    )  # fmt: skip
    return final.asnumpy(), steps, z.asnumpy()


def test_sampling_of_a_known_field() -> None:
    final, steps, z = _sample()
    np.testing.assert_allclose(final, z * 1.25**4, rtol=1e-5)  # v = z: each step multiplies by 1 + dt
    assert len(steps) == 4
    assert steps[0].x_mask is None


def test_frames_with_mask_zero_are_kept() -> None:
    frame_mask = np.array([[0.0, 1.0, 1.0, 0.5], [1.0, 1.0, 0.0, 1.0]], np.float32)
    final, steps, z = _sample(frame_mask=frame_mask)
    np.testing.assert_array_equal(final[0, :, 0], z[0, :, 0])
    np.testing.assert_array_equal(final[1, :, 2], z[1, :, 2])
    assert not np.array_equal(final[0, :, 1], z[0, :, 1])
    np.testing.assert_array_equal([step.x_mask[0, 3] for step in steps], [False, False, True, True])
    with pytest.raises(ValueError, match="noise"):
        z, _, _ = batch()
        flow().sample(Echo(), z, z, z, None, z, z, z, z, steps=2, guidance_scale=1.0, frame_mask=frame_mask)

"""IDDPM: schedules, losses, sampling. Numbers against the original are in test_parity."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from mindspore import ops as P

from models.diffusion.iddpm import IDDPM, Denoise, IDDPMOptions, SampleStep
from models.diffusion.iddpm_tables import SpeedSampling, diffusion_tables, kept_steps, named_betas

pytestmark = pytest.mark.train

SHAPE = (2, 4, 3, 2, 2)


def normal(seed: int, *shape: int) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal(shape or SHAPE).astype(np.float32))


def steps(*values: int) -> Tensor:
    return Tensor(np.array(values, np.int64))


def test_kept_steps() -> None:
    assert kept_steps(10, "5") == [0, 2, 4, 7, 9]
    assert kept_steps(10, "ddim5") == [0, 2, 4, 6, 8]
    assert kept_steps(9, "1,2,3") == [0, 3, 5, 6, 7, 8]
    assert kept_steps(10, [10]) == list(range(10))
    with pytest.raises(ValueError, match="cannot be cut to exactly 7"):
        kept_steps(10, "ddim7")
    for text in ("ddim", "5,x", ""):
        with pytest.raises(ValueError, match="neither numbers"):
            kept_steps(10, text)
    with pytest.raises(ValueError, match="keeps no step"):
        kept_steps(10, "0")
    with pytest.raises(ValueError, match="a section of 3"):
        kept_steps(9, "1,2,4")


def test_tables_of_a_single_step_are_finite() -> None:
    process = IDDPM(IDDPMOptions(num_sampling_steps=1))
    assert all(np.isfinite(table).all() for table in vars(process.tables).values())


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_respacing_keeps_the_noise_of_the_kept_steps(schedule: str) -> None:
    full = diffusion_tables(named_betas(schedule, 100))
    process = IDDPM(IDDPMOptions(diffusion_steps=100, timestep_respacing="ddim20", noise_schedule=schedule))
    np.testing.assert_allclose(process.tables.alphas_cumprod, full.alphas_cumprod[process.timestep_map], rtol=1e-12)


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="unknown noise schedule"):
        named_betas("cubic", 10)
    with pytest.raises(ValueError, match="use more steps"):
        IDDPM(IDDPMOptions(diffusion_steps=20))
    with pytest.raises(ValueError, match="not both"):
        IDDPM(IDDPMOptions(num_sampling_steps=5, timestep_respacing="ddim5"))
    process = IDDPM(IDDPMOptions(diffusion_steps=50, use_kl=True))
    x, noise, t = normal(0), normal(1), steps(3, 4)
    with pytest.raises(ValueError, match="frame masks"):
        process.training_losses(lambda *_: x, x, t, noise, Tensor(np.ones((2, 3), bool)))
    with pytest.raises(ValueError, match="8 channels"):
        IDDPM(IDDPMOptions(diffusion_steps=50)).training_losses(lambda *_: x, x, t, noise)
    with pytest.raises(ValueError, match="DDIM"):
        process.sample(lambda x, t, m: x, x, guidance_scale=1.0, noise=normal, ddim=True, frame_mask=np.ones((2, 3)))


def test_speed_sampling_prefers_steps_where_something_changes() -> None:
    speed = SpeedSampling.of(diffusion_tables(named_betas("linear", 1000), "float32"))
    assert speed.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert speed.probabilities[100] > 2 * speed.probabilities[-1] > 0
    assert 0 < speed.weights[0] < speed.weights[-1] <= 1
    drawn = speed.timesteps(np.array([0.0, 0.5, 0.999999]), 5)
    assert drawn[0] == 0
    np.testing.assert_array_equal(drawn[3:], np.abs(drawn[:2] - speed.meaningful_steps))
    assert drawn.min() >= 0
    assert drawn.max() < 1000
    with pytest.raises(ValueError, match="3 uniform numbers"):
        speed.timesteps(np.zeros(2), 5)


def test_a_perfect_noise_prediction_has_no_error_and_teaches_only_the_variance() -> None:
    process = IDDPM(IDDPMOptions(diffusion_steps=100))
    x, noise, t = normal(0), normal(1), steps(20, 70)
    values = ms.Parameter(normal(2))
    eps = ms.Parameter(noise)

    def losses(part: str) -> Tensor:
        out = P.concat((eps * 1.0, values * 1.0), 1)
        return process.training_losses(lambda x_t, times, mask: out, x, t, noise)[part].sum()

    assert float(losses("mse")) == 0
    of_eps, of_values = ms.grad(lambda: losses("vb"), None, [eps, values])()
    assert not of_eps.asnumpy().any()
    assert of_values.asnumpy().any()


def test_the_bound_is_zero_for_the_true_posterior() -> None:
    process = IDDPM(IDDPMOptions(diffusion_steps=100))
    x, noise, t = normal(0), normal(1), steps(20, 70)
    x_t = process.add_noise(x, t, noise)
    out = P.concat((noise, -P.ones_like(noise)), 1)  # -1: the lower bound of the variance, that of the posterior
    np.testing.assert_allclose(process.variational_bound(out, x, x_t, t).asnumpy(), 0, atol=1e-5)


def test_masked_frames_do_not_count() -> None:
    process = IDDPM(IDDPMOptions(diffusion_steps=100, precision="float32", guided_channels=None))
    x, noise, t = normal(0), normal(1), steps(0, 70)
    mask = np.array([[True, False, True], [True, True, False]])
    out = normal(3, 2, 8, 3, 2, 2)
    other = out.asnumpy().copy()
    other[0, :, 1] += 5
    other[1, :, 2] -= 5
    x_masked = process.noised_input(x, t, noise, Tensor(mask))
    results = [process.loss_terms(answer, x, x_masked, t, noise, Tensor(mask)) for answer in (out, Tensor(other))]
    for part in ("mse", "vb", "loss"):
        np.testing.assert_array_equal(results[0][part].asnumpy(), results[1][part].asnumpy())
    x_t = x_masked.asnumpy()
    clean = process.add_noise(x, steps(0, 0), noise).asnumpy()
    np.testing.assert_array_equal(x_t[1, :, 2], clean[1, :, 2])
    assert np.abs(x_t[1, :, 0] - clean[1, :, 0]).max() > 0.1


def test_fixed_variances() -> None:
    x, t, out = normal(0), steps(3, 40), normal(1)
    widths = {}
    for small in (True, False):
        process = IDDPM(IDDPMOptions(diffusion_steps=50, learn_sigma=False, sigma_small=small))
        assert set(process.training_losses(lambda *_: out, x, t, normal(2))) == {"mse", "loss"}
        widths[small] = process.predict(out, x, t).log_variance.asnumpy()
    assert (widths[True] < widths[False]).all()
    np.testing.assert_allclose(widths[False][0, 0, 0, 0, 0], np.log(named_betas("linear", 50)[3]), rtol=1e-6)


def exact(process: IDDPM, target: Tensor) -> Denoise:
    """A network that knows the clean latent: it answers with the noise in its input, and the least variance."""

    def denoise(x: Tensor, times: Tensor, mask: Tensor | None) -> Tensor:
        index = int(np.flatnonzero(process.timestep_map == int(times[0]))[0])
        t = Tensor(np.full(x.shape[0], index, np.int64))
        clean = P.concat((target, target), 0)
        eps = (process.at("sqrt_recip_alphas_cumprod", t) * x - clean) / process.at("sqrt_recipm1_alphas_cumprod", t)
        return P.concat((eps, -P.ones_like(eps)), 1)

    return denoise


@pytest.mark.parametrize("ddim", [False, True])
def test_sampling_finds_what_the_network_knows(ddim: bool) -> None:
    process = IDDPM(IDDPMOptions(diffusion_steps=1000, num_sampling_steps=8, guided_channels=None))
    target, seen = normal(5), []
    denoise = exact(process, target)
    found = process.sample(
        denoise, normal(6), guidance_scale=3.0, noise=lambda draw: normal(100 + draw), ddim=ddim, observe=seen.append
    )
    np.testing.assert_allclose(found.asnumpy(), target.asnumpy(), atol=0.02 if not ddim else 1e-3)
    assert [step.timestep for step in seen] == process.timestep_map[::-1].tolist()


def test_kept_frames_stay_and_started_ones_are_noised_once() -> None:
    process = IDDPM(IDDPMOptions(num_sampling_steps=5, precision="float32", guided_channels=None))
    target, z = normal(5), normal(6)
    frame_mask = np.array([[1.0, 0.0, 0.6], [0.0, 1.0, 1.0]], np.float32)
    draws: list[int] = []
    seen: list[SampleStep] = []

    def noise(draw: int) -> Tensor:
        draws.append(draw)
        return normal(100 + draw)

    process.sample(
        exact(process, target), z, guidance_scale=1.0, noise=noise, frame_mask=frame_mask, observe=seen.append
    )
    masks = np.stack([step.x_mask for step in seen])
    np.testing.assert_array_equal(masks[:, 0], [[True, False, False]] * 2 + [[True, False, True]] * 3)
    start = z.asnumpy()
    np.testing.assert_array_equal(seen[1].model_in.asnumpy()[0, :, 2] != start[0, :, 2], True)
    np.testing.assert_array_equal(seen[1].model_in.asnumpy()[0, :, 1], start[0, :, 1])
    assert draws == [0, 1, 2, 3, 4, 5, 6, 7, 8]  # the last step draws for its frames, then adds none


def test_v1_0_guides_three_channels() -> None:
    process = IDDPM(IDDPMOptions(diffusion_steps=50))
    out = P.concat((P.ones((1, 8, 1, 1, 1), ms.float32), P.zeros((1, 8, 1, 1, 1), ms.float32)), 0)
    assert process.guide(out, 4.0, 4).asnumpy().ravel().tolist() == [4, 4, 4, 1, 1, 1, 1, 1]

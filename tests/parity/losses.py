"""Losses of autoencoder training: reconstruction and divergence (both versions), adversarial formulas."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor
from mindspore import ops as P

from models.vae import adversarial
from models.vae.autoencoder_kl import as_rows
from models.vae.distribution import deviation, divergence, mean_and_logvar
from models.vae.losses import divergence_between, loss_v1_2, loss_v2_0, nll
from models.vae.lpips import LPIPS, from_weights
from tests.parity.cases import Arrays, Case


def run(case: Case) -> Arrays:
    """All recorded tensors of the case, computed."""
    return _vae_losses(case) if case.config["kind"] == "vae_loss" else _gan_losses(case)


def _vae_losses(case: Case) -> Arrays:
    model = from_weights(case.weights, str(case.path))
    computed: Arrays = {}
    for name, about in case.config["args"]["variants"].items():
        computed |= {f"{name}.{key}": value for key, value in _variant(case, model, about).items()}
    for by in ("frame", "clip"):
        moments, others = _by(case.need("moments"), by), _by(case.need("moments2"), by)
        computed[f"kl.{by}"] = divergence(moments).asnumpy()
        computed[f"kl.{by}.other"] = divergence_between(moments, others).asnumpy()
        computed[f"kl.{by}.std"] = deviation(mean_and_logvar(case.need("moments"))[1]).asnumpy()
    return computed


def _by(moments: Tensor, by: str) -> Tensor:
    return as_rows(moments) if by == "frame" else moments


def _variant(case: Case, model: LPIPS, about: dict[str, Any]) -> Arrays:
    """Losses and gradients of nll + kl with respect to reconstruction, moments and logvar."""
    video, moments = case.need("video"), case.need("moments")
    frame_weights = case.need("nll_weights") if about.get("weights") else None

    def losses(recon: Tensor, moments: Tensor, logvar: Tensor) -> dict[str, Tensor]:
        kl = divergence(_by(moments, about["posterior"])) if about["posterior"] else None
        # Version 2.0 always tells the distance, 1.2 does without where nobody wants it.
        wanted = about["version"] == "2.0" or (about["perceptual"] > 0 and not about.get("no_perceptual"))
        distance = model(as_rows(video), as_rows(recon)) if wanted else None
        if about["version"] == "2.0":
            found = loss_v2_0(video, recon, logvar, distance, about["perceptual"], kl, about["kl"])
            return {"nll_loss": found.nll, "kl_loss": found.kl, "recon_loss": found.recon,
                    "perceptual_loss": found.perceptual}  # fmt: skip
        plain, weighted = loss_v1_2(nll(video, recon, logvar, distance, about["perceptual"]), frame_weights)
        kl_loss = Tensor(np.float32(0)) if kl is None else kl.sum() / kl.shape[0] * about["kl"]
        return {"nll_loss": plain, "weighted_nll_loss": weighted, "kl_loss": kl_loss}

    def total(recon: Tensor, moments: Tensor, logvar: Tensor) -> Tensor:
        found = losses(recon, moments, logvar)
        return found.get("weighted_nll_loss", found["nll_loss"]) + found["kl_loss"]

    inputs = (case.need("rec"), moments, Tensor(np.float32(about["logvar_init"])))
    gradients = ms.grad(total, (0, 1, 2))(*inputs)
    computed = {key: value.asnumpy() for key, value in losses(*inputs).items()}
    names = ("grad_rec", "grad_moments", "grad_logvar")
    return computed | {key: value.asnumpy() for key, value in zip(names, gradients, strict=True)}


def _gan_losses(case: Case) -> Arrays:
    real, fake, options = case.need("real_logits"), case.need("fake_logits"), case.config["args"]
    computed: Arrays = {}
    for name, loss in adversarial.DISCRIMINATOR_LOSSES.items():
        key = name.replace("-", "_")
        computed[key] = loss(real, fake).asnumpy()
        of_real, of_fake = ms.grad(loss, (0, 1))(real, fake)
        computed |= {f"{key}.grad_real": of_real.asnumpy(), f"{key}.grad_fake": of_fake.asnumpy()}
    averages = case.need("ema_real"), case.need("ema_fake")
    lecam = adversarial.lecam(real.mean(), fake.mean(), *averages).asnumpy()
    computed |= {
        "sigmoid_ce_ones": adversarial.sigmoid_cross_entropy(real, 1.0).asnumpy(),
        "sigmoid_ce_zeros": adversarial.sigmoid_cross_entropy(fake, 0.0).asnumpy(),
        "lecam": lecam,
    }
    for name in ("hinge", "vanilla", "non-saturating"):
        loss = adversarial.DISCRIMINATOR_LOSSES[name]
        computed |= {
            f"v12.{name}.adv": loss(real, fake).asnumpy() * np.float32(options["factor"]),
            f"v12.{name}.lecam": lecam * np.float32(options["lecam_w"]),
            f"v12.{name}.gp": np.float32(0),
            f"v12.{name}.adv_before_start": np.float32(0),
        }
    return computed | _penalty(case) | _generators(case) | _averages(case)


def _penalty(case: Case) -> Arrays:
    images, weights = case.need("gp_images"), case.need("gp_w")

    def out(x: Tensor) -> Tensor:
        return (x * weights + 0.1 * x * x).reshape(x.shape[0], -1).sum(-1)

    def penalty(x: Tensor) -> Tensor:
        return adversarial.gradient_penalty(out, x)

    return {
        "gradient_penalty": penalty(images).asnumpy(),
        "gradient_penalty.grad": ms.grad(penalty)(images).asnumpy(),
    }


def _generators(case: Case) -> Arrays:
    """nll = sum |A last|, logits = tanh(A last) fake_scale; loss times adaptive weight, its factor and the factor."""
    matrix, last, scale = case.need("A"), case.need("last_layer"), case.need("fake_scale")
    options = case.config["args"]
    of_nll = ms.grad(lambda weight: P.abs(P.matmul(matrix, weight)).sum())(last).asnumpy()
    computed = {}
    for kind in ("hinge", "non-saturating"):

        def generator(weight: Tensor, kind: str = kind) -> Tensor:
            # In float64: the float32 tanh here is off by 1e-7, and logits nearly cancel in their mean.
            logits = P.tanh(P.matmul(matrix, weight).astype(ms.float64)) * scale
            return adversarial.generator_loss(logits, kind).astype(ms.float32)

        of_loss = ms.grad(generator)(last).asnumpy()
        weight = adversarial.adaptive_weight(float(np.linalg.norm(of_nll)), float(np.linalg.norm(of_loss)))
        factor = np.float32(weight * options["gen_factor"] * options["factor"])
        computed[f"v12.gen.{kind}"] = factor * generator(last).asnumpy()
    return computed


def _averages(case: Case) -> Arrays:
    """Four updates with (mean(real) + i, mean(fake) - i)."""
    averages = adversarial.LeCamEMA(0.2, -0.1, case.config["args"]["lecam_decay"])
    real, fake = case.inputs["real_logits"].mean(), case.inputs["fake_logits"].mean()
    rows = []
    for number in range(case.outputs["v12.lecam_ema"].shape[0]):
        averages.update(real + number, fake - number)
        rows.append([averages.real, averages.fake])
    return {"v12.lecam_ema": np.array(rows, np.float32)}

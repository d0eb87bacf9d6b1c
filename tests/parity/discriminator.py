"""The patch discriminator and the adversarial losses of version 2.0."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor
from mindspore import ops as P

from models.vae.adversarial import DISCRIMINATOR_LOSSES, adaptive_weight, generator_loss
from models.vae.discriminator import PatchDiscriminator
from models.weights import load_state_dict, state_dict
from tests.parity.cases import Arrays, Case


def run(case: Case) -> Arrays:
    """All recorded tensors of the case, computed."""
    arguments = case.config["args"]["args"]
    kind = "NLayerDiscriminator3D" if "3D" in case.config["class"] else "NLayerDiscriminator"
    model = PatchDiscriminator(kind, **{key: arguments[key] for key in ("input_nc", "ndf", "n_layers")})
    load_state_dict(model, case.weights)
    real, fake = case.need("real"), case.need("fake")
    model.set_train(False)
    computed: Arrays = {"eval.real": model(real).asnumpy(), "eval.fake": model(fake).asnumpy()}
    model.set_train(True)
    logits = {"train.real": model(real), "train.fake": model(fake)}
    state = state_dict(model)
    computed |= {key: value.asnumpy() for key, value in logits.items()}
    computed |= {
        f"after_two_calls.{name}": value.astype(np.int64) if name.endswith("tracked") else value
        for name, value in state.items()
        if name.endswith(("running_mean", "running_var", "tracked"))
    }
    for name, loss in DISCRIMINATOR_LOSSES.items():
        computed[f"disc_loss.{name}"] = loss(*logits.values()).asnumpy()
    computed["disc_loss.not_started"] = np.float32(0)
    return computed | _gradients(case, model, real, fake) | _generator(case, model)


def _gradients(case: Case, model: PatchDiscriminator, real: Tensor, fake: Tensor) -> Arrays:
    """Of the hinge loss."""
    params = dict(model.parameters_and_names())
    order = case.config["parameter_order"]["grad_l2_all"]
    loss = DISCRIMINATOR_LOSSES["hinge"]
    function = ms.grad(lambda x: loss(model(real), model(x)), 0, ParameterTuple([params[name] for name in order]))
    of_fake, of_params = function(fake)
    values = {name: gradient.asnumpy() for name, gradient in zip(order, of_params, strict=True)}
    computed: Arrays = {"grad_fake": of_fake.asnumpy()}
    computed |= {f"grad.{name}": values[name] for name in case.config["args"]["grad_params"]}
    norms = [np.sqrt(np.sum(value.astype(np.float64) ** 2)) for value in values.values()]
    return computed | {"grad_l2_all": np.array(norms, np.float32)}


def _generator(case: Case, model: PatchDiscriminator) -> Arrays:
    """The generator is a mixing of channels, ``last_layer``; nll is the sum of differences over B."""
    real, before, last = case.need("real"), case.need("pre_last"), case.need("last_layer")
    b, c, *sides = before.shape

    def rebuilt(weight: Tensor) -> Tensor:
        return P.matmul(weight, before.reshape(b, c, -1)).reshape(b, weight.shape[0], *sides)

    def nll(weight: Tensor) -> Tensor:
        return P.abs(real - rebuilt(weight)).sum() / b

    def generator(weight: Tensor) -> Tensor:
        return generator_loss(model(rebuilt(weight)))

    of_nll, of_generator = ms.grad(nll)(last).asnumpy(), ms.grad(generator)(last).asnumpy()
    weight = adaptive_weight(float(np.linalg.norm(of_nll)), float(np.linalg.norm(of_generator)))
    weight *= case.config["args"]["disc_weight"]
    loss = generator(last).asnumpy()
    return {
        "gen.logits": model(rebuilt(last)).asnumpy(),
        "gen.nll": nll(last).asnumpy(),
        "gen.g_loss": loss,
        "gen.adaptive_weight": np.float32(weight),
        "gen.weighted": np.float32(weight) * loss,
        "gen.before_start": np.float32(0),
        "gen.grad_last_layer": of_nll + np.float32(weight) * of_generator,
    }

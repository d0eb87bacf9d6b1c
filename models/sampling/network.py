"""The network to sample with: built, its weights loaded whole, shared over ranks."""

from __future__ import annotations

from mindspore import Tensor

from models.config import ModelConfig
from models.config.sample import SampleConfig
from models.convert.fit import Fit, fit, unwrapped
from models.convert.stored import Weights
from models.exits import BAD_CHECKPOINT, BAD_CONFIG, PayloadError
from models.layers.tables import inverse_frequencies
from models.parallel.mesh import Mesh
from models.parallel.sequence import divide
from models.sampling.weights import Source, read_weights
from models.stdit import Transformer, create
from models.stdit.initial import position_tables

_ROPE = "rope.freqs"
_SPACE, _TIME = "pos_embed", "pos_embed_temporal"
_SHOWN = 20


def load_network(
    config: SampleConfig, source: Source, latent_size: tuple[int, int, int], mesh: Mesh, dtype: str
) -> tuple[Transformer, list[str]]:
    """The network in ``dtype``, and lines for the log on its weights. PayloadError for weights that do not fit."""
    assert config.model is not None
    if config.model.skip_y_embedder:
        raise PayloadError(
            BAD_CONFIG, "this network has no embedder of captions", where="sample.model.skip_y_embedder",
            why="sampling needs its null caption for guidance", next_step="name a network with one",
        )  # fmt: skip
    model = create(config.model, latent_size, dtype)
    weights, what = read_weights(source, config.use_ema)
    lines = [what, *load_whole(model, config.model, weights, str(source.path))]
    divide(model, mesh)
    return model, lines


def load_whole(model: Transformer, config: ModelConfig, weights: Weights, where: str) -> list[str]:
    """Every parameter, or PayloadError: nothing is loaded in part. What was changed to fit, for the log.

    Tables that follow from sizes (rotary frequencies, STDiT's positions) are computed, whatever the file holds.
    """
    params = dict(model.parameters_and_names())
    shapes = {name: tuple(param.shape) for name, param in params.items()}
    found = fit(weights, shapes, config)
    _check(found, where)
    lines = _check_positions(weights, shapes, where)
    for name, value in found.values():
        params[name].set_data(Tensor(value, dtype=params[name].dtype))
    if _ROPE in found.kept:
        params[_ROPE].set_data(Tensor(inverse_frequencies(shapes[_ROPE][0])))
    if config.type == "STDiT":
        for name, value in position_tables(config, model.token_grid(*model.latent_size)).items():
            params[name].set_data(Tensor(value))
    return lines + [f"{name}: {taken.how}" for name, taken in found.taken.items() if taken.how][:_SHOWN]


def _check(found: Fit, where: str) -> None:
    wrong = found.problems()
    left = [name for name in found.kept if name not in (_ROPE, _SPACE, _TIME)]
    if left and not wrong:
        wrong = [f"missing: {name}" for name in left]
    if not wrong:
        return
    shown = "\n    ".join(wrong[:_SHOWN]) + (f"\n    … and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else "")
    raise PayloadError(
        BAD_CHECKPOINT, f"weights do not fit the model: {len(wrong)} differences", where=where, why=f"\n    {shown}",
        next_step="make sample.model describe the model these weights come from",
    )  # fmt: skip


def _check_positions(weights: Weights, shapes: dict[str, tuple[int, ...]], where: str) -> list[str]:
    """STDiT has one size of frames, that of its weights: PayloadError for another one. A line for another length.

    Clips of another length are what upstream makes by ``time_scale``.
    """
    held = {name: stored.shape for name, (_, stored) in unwrapped(weights).items() if name in (_SPACE, _TIME)}
    if _SPACE in shapes and held.get(_SPACE, shapes[_SPACE]) != shapes[_SPACE]:
        raise PayloadError(
            BAD_CONFIG, "STDiT was made for frames of another size", where=where,
            why=f"its weights have {held[_SPACE][1]} patches a frame, these samples {shapes[_SPACE][1]}",
            next_step="sample the image_size it was trained with",
        )  # fmt: skip
    if _TIME in shapes and held.get(_TIME, shapes[_TIME]) != shapes[_TIME]:
        return [f"positions in time are those of {shapes[_TIME][1]} frames; the weights are of {held[_TIME][1]}"]
    return []

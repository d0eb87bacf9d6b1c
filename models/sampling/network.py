"""The network to sample with: built, its weights loaded whole, shared over ranks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from models.config import ModelConfig
from models.config.sample import SampleConfig
from models.exits import BAD_CHECKPOINT, BAD_CONFIG, PayloadError
from models.layers.tables import inverse_frequencies
from models.parallel.mesh import Mesh
from models.parallel.sequence import divide
from models.sampling.weights import Source, read_weights
from models.stdit import Transformer, create
from models.stdit.initial import position_tables
from models.weights import load_state_dict, mismatches

# Tables that follow from the sizes: files with and without them are both whole.
_TABLES = ("rope.freqs", "pos_embed", "pos_embed_temporal")
_SHOWN = 20


def load_network(
    config: SampleConfig, source: Source, latent_size: tuple[int, int, int], mesh: Mesh, dtype: str
) -> tuple[Transformer, str]:
    """The network in ``dtype``, and what its weights are, for people. PayloadError for weights that do not fit."""
    assert config.model is not None
    if config.model.skip_y_embedder:
        raise PayloadError(
            BAD_CONFIG, "this network has no embedder of captions", where="sample.model.skip_y_embedder",
            why="sampling needs its null caption for guidance", next_step="name a network with one",
        )  # fmt: skip
    model = create(config.model, latent_size, dtype)
    weights, what = read_weights(source, config.use_ema)
    _load(model, config.model, weights, latent_size, source)
    divide(model, mesh)
    return model, what


def _load(
    model: Transformer,
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    latent_size: tuple[int, int, int],
    source: Source,
) -> None:
    """Every parameter, or PayloadError: nothing is loaded in part."""
    weights = {**_tables(model, config, latent_size), **weights}
    wrong = mismatches(model, weights)
    if not wrong:
        load_state_dict(model, weights)
        return
    sizes = [line for line in wrong if line.startswith(tuple(f"shape: {name} " for name in _TABLES[1:]))]
    if len(sizes) == len(wrong):
        raise PayloadError(
            BAD_CONFIG, f"{config.type} was made for samples of another size", where=str(source.path),
            why="; ".join(sizes), next_step="sample the size and number of frames it was trained with",
        )  # fmt: skip
    shown = "\n    ".join(wrong[:_SHOWN]) + (f"\n    … and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else "")
    raise PayloadError(
        BAD_CHECKPOINT, f"weights do not fit the model: {len(wrong)} differences", where=str(source.path),
        why=f"\n    {shown}", next_step="make sample.model describe the model these weights come from",
    )  # fmt: skip


def _tables(model: Transformer, config: ModelConfig, latent_size: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """The tables of a model of this size, for files that leave them out."""
    found = dict(model.parameters_and_names())
    tables: dict[str, np.ndarray] = {}
    if "rope.freqs" in found:
        tables["rope.freqs"] = inverse_frequencies(found["rope.freqs"].shape[0])
    if config.type == "STDiT":
        tables |= position_tables(config, model.token_grid(*latent_size))
    return tables

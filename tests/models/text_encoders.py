"""Tiny T5 folders for tests: random weights under Hugging Face's names, the small vocabulary of tests/data/spiece."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

SPIECE = Path(__file__).parents[1] / "data" / "spiece"
CONFIG = {
    "model_type": "t5",
    "vocab_size": 512,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
}


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """A state dict of ``T5EncoderModel`` with ``CONFIG``."""
    random = np.random.default_rng(seed)
    model, inner = CONFIG["d_model"], CONFIG["num_heads"] * CONFIG["d_kv"]
    hidden = CONFIG["d_ff"]
    shapes = {"shared.weight": (CONFIG["vocab_size"], model), "encoder.final_layer_norm.weight": (model,)}
    for layer in range(CONFIG["num_layers"]):
        name = f"encoder.block.{layer}.layer"
        shapes |= {f"{name}.0.SelfAttention.{key}.weight": (inner, model) for key in "qkv"}
        shapes |= {f"{name}.0.SelfAttention.o.weight": (model, inner), f"{name}.0.layer_norm.weight": (model,)}
        shapes |= {f"{name}.1.DenseReluDense.wi_{key}.weight": (hidden, model) for key in (0, 1)}
        shapes |= {
            f"{name}.1.DenseReluDense.wo.weight": (model, CONFIG["d_ff"]),
            f"{name}.1.layer_norm.weight": (model,),
        }
    shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, CONFIG["num_heads"])
    return {name: random.standard_normal(shape, np.float32) * 0.4 for name, shape in shapes.items()}


def make_t5(folder: Path, *, shards: int = 1, **config: object) -> Path:
    """A folder as Hugging Face has them: config.json, weights (in ``shards`` files with an index), spiece.model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    shutil.copyfile(SPIECE / "spiece.model", folder / "spiece.model")
    state = weights()
    if shards == 1:
        save_file(state, folder / "model.safetensors")
        return folder
    files = [f"model-{number + 1:05d}-of-{shards:05d}.safetensors" for number in range(shards)]
    places = {name: files[number % shards] for number, name in enumerate(state)}
    for file in files:
        save_file({name: state[name] for name, place in places.items() if place == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder

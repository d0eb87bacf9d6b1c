"""A Hugging Face folder of a T5: config.json, and weights in one safetensors file or several with an index."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from models.checkpoint.tensors import BadTensors, read_header, read_range
from models.exits import BAD_CHECKPOINT, BAD_CONFIG, PayloadError

_INDEX = "model.safetensors.index.json"
# Both names stand for the one table of token embeddings; files hold either or both.
_TABLES = ("shared.weight", "encoder.embed_tokens.weight")
_SIZES = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
_OPTIONAL = {
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
}


def read_t5_config(folder: Path) -> dict[str, Any]:
    """The sizes in config.json, by the names of :class:`models.text.t5.T5Shape`.

    PayloadError(BAD_CONFIG): no such folder or file, sizes missing, or not a T5 with a gated GELU (v1.1).
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise _bad_config(folder, "folder of the text encoder does not exist", "", "correct text.pretrained")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _bad_config(path, "text encoder has no config.json", "", "name the folder that holds it") from None
    except (OSError, ValueError) as error:
        raise _bad_config(path, "config.json of the text encoder cannot be read", str(error), "get it again") from None
    if not isinstance(config, dict):
        raise _bad_config(path, "config.json of the text encoder is not an object", "", "get it again")
    return t5_sizes(config, path)


def t5_sizes(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The sizes in a ``T5Config`` as a mapping; ``path`` is named in errors."""
    found = config.get("model_type", "t5")
    if found != "t5":
        raise _bad_config(path, f"{found!r} is not a T5", "", "name the folder of a T5 v1.1 encoder")
    kind = config.get("feed_forward_proj", "relu")
    if kind not in ("gated-gelu", "gated-gelu_new") and config.get("dense_act_fn") != "gelu_new":
        why = f"feed_forward_proj is {kind!r}; Open-Sora's is that of T5 v1.1, gated-gelu"
        raise _bad_config(path, "this kind of T5 is not supported", why, "use t5-v1_1-* weights")
    missing = [name for name in _SIZES if not isinstance(config.get(name), int) or config[name] < 1]
    if missing:
        raise _bad_config(path, f"config.json of the text encoder says no {missing[0]}", "", "get it again")
    return {name: config[name] for name in _SIZES} | {
        name: config.get(name, default) for name, default in _OPTIONAL.items()
    }


class T5Weights:
    """Weights of a folder, read one by one. PayloadError(BAD_CHECKPOINT) names file and tensor."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._entries: dict[str, tuple[Path, dict[str, Any]]] = {}
        for path in _weight_files(folder):
            try:
                header = read_header(path)
            except FileNotFoundError:
                raise self._bad(path, "weights of the text encoder are missing", f"{_INDEX} names it") from None
            except (BadTensors, OSError) as error:
                raise self._bad(path, "weights of the text encoder cannot be read", str(error)) from None
            self._entries |= {name: (path, entry) for name, entry in header.items()}

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Values of a tensor with that shape; bfloat16 becomes float32."""
        names = _TABLES if name in _TABLES else (name,)
        path, entry = next((self._entries[one] for one in names if one in self._entries), (None, None))
        if path is None or entry is None:
            raise self._bad(self._folder, "weights of the text encoder are not complete", f"{name} is missing")
        if tuple(entry["shape"]) != shape:
            why = f"{name} is {entry['shape']}, config.json says {list(shape)}"
            raise self._bad(path, "weights of the text encoder do not fit its config.json", why)
        try:
            return read_range(path, entry, 0, math.prod(shape)).reshape(shape)
        except (BadTensors, OSError) as error:
            raise self._bad(path, "weights of the text encoder cannot be read", str(error)) from None

    @staticmethod
    def _bad(path: Path, what: str, why: str) -> PayloadError:
        return PayloadError(BAD_CHECKPOINT, what, where=str(path), why=why, next_step="get the folder's files again")


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: those of its index, else model.safetensors, else the only one there."""
    index = folder / _INDEX
    if index.is_file():
        try:
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            return [folder / Path(name).name for name in sorted(set(names))]
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise T5Weights._bad(index, "index of the weights cannot be read", str(error)) from None
    files = sorted(folder.glob("*.safetensors"))
    named = [path for path in files if path.name == "model.safetensors"] or files
    if len(named) == 1:
        return named
    others = sorted(path.name for path in folder.glob("*.bin*")) + sorted(path.name for path in folder.glob("*.ckpt"))
    if files:
        why = f"{len(files)} safetensors files and no {_INDEX}"
    else:
        why = "no safetensors file" + (f"; it holds {', '.join(others[:4])}" if others else "")
    raise PayloadError(
        BAD_CHECKPOINT,
        "weights of the text encoder are not there",
        where=str(folder),
        why=why,
        next_step=f"ostrain convert {folder} {folder / 'model.safetensors'}"
        if others
        else "put model.safetensors there",
    )


def _bad_config(path: Path, what: str, why: str, next_step: str) -> PayloadError:
    return PayloadError(BAD_CONFIG, what, where=str(path), why=why, next_step=next_step)

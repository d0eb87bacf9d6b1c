"""T5 as a text encoder: cleaning, tokens, network, on the device the run uses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mindspore import Tensor

from models.config.text import TextConfig
from models.layers.linear import as_dtype
from models.ops import device_target
from models.text.cleaning import text_preprocessing
from models.text.encoder import TextEncoder, Warn
from models.text.t5 import T5Encoder, T5Shape
from models.text.t5_files import T5Weights, read_t5_config
from models.text.tokenizer import T5Tokenizer, load_tokenizer


class T5TextEncoder(TextEncoder):
    """Texts are cleaned (twice, as upstream), cut to ``max_length`` tokens and padded to it; the mask is used."""

    def __init__(self, config: TextConfig, tokenizer: T5Tokenizer, network: T5Encoder, warn: Warn | None) -> None:
        super().__init__(warn)
        self._config, self._tokenizer, self._network = config, tokenizer, network
        self.max_length = config.max_length
        self.channels = network.encoder.shape.d_model

    def encode_with_tokens(
        self, texts: Sequence[str], cleaned: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        prepared = list(texts) if cleaned else [text_preprocessing(text, self._config.clean) for text in texts]
        tokens = self._tokenizer(prepared)
        for text, length in zip(texts, tokens.lengths, strict=True):
            if length > self.max_length:
                self._warn_of_cut(text, length)
        found = self._network(Tensor(tokens.ids), Tensor(tokens.mask.astype(np.int32))).asnumpy()
        return found.astype(np.float32, copy=False), tokens.mask, tokens.ids


def load_t5(config: TextConfig, folder: Path, warn: Warn | None = None) -> T5TextEncoder:
    """The encoder in a Hugging Face folder. PayloadError says what is missing, damaged or does not fit."""
    shape = T5Shape(**read_t5_config(folder))
    tokenizer = load_tokenizer(folder, config.max_length)
    # The CPU has hardly any half precision kernels.
    dtype = config.dtype if device_target() == "Ascend" else "fp32"
    return T5TextEncoder(config, tokenizer, T5Encoder(shape, T5Weights(folder).read, as_dtype(dtype)), warn)

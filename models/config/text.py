"""Who turns captions into embeddings."""

from __future__ import annotations

from typing import Literal

from models.config.base import Dtype, Positive, Section
from models.units import Size


class TextConfig(Section):
    """The text encoder.

    t5: the encoder of T5 v1.1 from the Hugging Face folder ``pretrained`` (config.json, weights as safetensors, and
    tokenizer.json or spiece.model). hashed: stand-in vectors of ``channels`` numbers, one a word, without weights.
    max_length: tokens of a caption; shorter ones are padded, longer ones are cut. clean: captions are cleaned the way
    the encoder of Open-Sora wants it, else only put in lower case. cache: bytes of embeddings that a worker remembers
    where captions are embedded during training.
    """

    type: Literal["t5", "hashed"] = "t5"
    pretrained: str | None = None
    max_length: Positive = 300
    channels: Positive = 64
    clean: bool = True
    dtype: Dtype = "fp32"
    cache: Size = 1 << 30

    @property
    def has_weights(self) -> bool:
        """Whether the weights it needs are named."""
        return self.type == "hashed" or bool(self.pretrained)

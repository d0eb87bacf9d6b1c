"""The diffusion transformers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from models.config.base import Positive, Probability, Section

TYPES = ("STDiT", "STDiT2", "STDiT3")
_XL = {"hidden_size": 1152, "depth": 28, "num_heads": 16}
# Upstream's names of published sizes: type, and what they fix.
PRESETS: dict[str, tuple[str, dict[str, int]]] = {
    "STDiT-XL/2": ("STDiT", _XL),
    "STDiT2-XL/2": ("STDiT2", _XL),
    "STDiT3-XL/2": ("STDiT3", _XL),
    "STDiT3-3B/2": ("STDiT3", {"hidden_size": 1872, "depth": 28, "num_heads": 26}),
}
# What published weights of a type were made with, where nothing else is said.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "STDiT": {"qk_norm": False, "model_max_length": 120},
    "STDiT2": {"qk_norm": True, "model_max_length": 200},
    "STDiT3": {"qk_norm": True, "model_max_length": 300},
}
# Options that other types have no use for, and the values with which they say nothing.
_NEUTRAL: dict[str, dict[str, Any]] = {
    "STDiT": {"qk_norm": False, "only_train_temporal": False, "skip_y_embedder": False},
    "STDiT2": {"space_scale": 1.0, "time_scale": 1.0, "only_train_temporal": False, "skip_y_embedder": False},
    "STDiT3": {"space_scale": 1.0, "time_scale": 1.0, "no_temporal_pos_emb": False, "freeze": None},
}

ModelType = Literal[
    "STDiT", "STDiT2", "STDiT3", "STDiT-XL/2", "STDiT2-XL/2", "STDiT3-XL/2", "STDiT3-3B/2"
]  # fmt: skip


class ModelConfig(Section):
    """The diffusion transformer: STDiT (Open-Sora 1.0), STDiT2 (1.1) or STDiT3 (1.2).

    Field names are those of upstream's constructors (opensora/models/stdit/{stdit,stdit2,stdit3}.py). ``type`` may also
    be a published size, as upstream names it (``STDiT3-XL/2``, ``STDiT3-3B/2``, ``STDiT2-XL/2``, ``STDiT-XL/2``), whose
    numbers are then defaults.

    space_scale, time_scale: what positions of STDiT are divided by. no_temporal_pos_emb: accepted for STDiT and STDiT2
        because upstream's files have it; upstream reads it nowhere, so it changes nothing.
    input_sq_size: side in pixels at which positions of STDiT2 and STDiT3 are not scaled.
    qk_norm: STDiT2 and STDiT3, whose published weights have it; STDiT has none.
    freeze: ``not_temporal`` trains the temporal attention of STDiT and STDiT2 alone, ``text`` freezes their cross
        attention. only_train_temporal, skip_y_embedder: STDiT3. freeze_y_embedder: any.
    """

    type: ModelType = "STDiT3"
    in_channels: Positive = 4
    patch_size: tuple[Positive, Positive, Positive] = (1, 2, 2)
    input_sq_size: Positive = 512
    space_scale: Annotated[float, Field(gt=0)] = 1.0
    time_scale: Annotated[float, Field(gt=0)] = 1.0
    no_temporal_pos_emb: bool = False
    hidden_size: Positive = 1152
    depth: Positive = 28
    num_heads: Positive = 16
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    class_dropout_prob: Probability = 0.1
    pred_sigma: bool = True
    drop_path: Literal[0.0] = 0.0
    caption_channels: Positive = 4096
    model_max_length: Positive = 300
    qk_norm: bool = True
    freeze: Literal["not_temporal", "text"] | None = None
    only_train_temporal: bool = False
    freeze_y_embedder: bool = False
    skip_y_embedder: bool = False

    @property
    def out_channels(self) -> int:
        return self.in_channels * (2 if self.pred_sigma else 1)

    # Not before the fields are checked: what runs before strict checks of JSON turns its lists into Python's, which
    # are no tuples.
    @model_validator(mode="after")
    def _defaults_of_the_type(self) -> ModelConfig:
        kind, sizes = PRESETS.get(self.type, (self.type, {}))
        defaults = {**_DEFAULTS[kind], **sizes}
        said = {key: value for key, value in defaults.items() if key not in self.model_fields_set}
        self.__dict__.update(said, type=kind)
        return self

    @model_validator(mode="after")
    def _options_of_the_type(self) -> ModelConfig:
        for name, neutral in _NEUTRAL[self.type].items():
            if getattr(self, name) != neutral:
                raise ValueError(f"{self.type} knows no {name}: leave it out")
        return self

    @model_validator(mode="after")
    def _sizes_divide(self) -> ModelConfig:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        head_dim = self.hidden_size // self.num_heads
        if self.type != "STDiT" and head_dim % 2:
            raise ValueError(f"hidden_size / num_heads is {head_dim}; rotary embeddings need an even number")
        if self.hidden_size % 4:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of 4 (2-D position table)")
        if self.type == "STDiT2" and self.hidden_size % 3:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of 3 (embeddings of height and width)")
        return self

"""What whole weights of a kind hold: names and shapes, worked out from the weights themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from models.config import ModelConfig
from models.shapes import parameter_shapes

Shapes = Mapping[str, tuple[int, ...]]
_TYPES = {"stdit": "STDiT", "stdit2": "STDiT2", "stdit3": "STDiT3", "pixart": "STDiT"}
# Fixed values and buffers that a file may leave out, and what some PixArt models have beside others.
OPTIONAL = re.compile(r"^(?:rope\.freqs|pos_embed|pos_embed_temporal|y_embedder\.y_embedding|scale|shift)$|"
                      r"^(?:csize_embedder|ar_embedder)\.")  # fmt: skip
_RESNET = ("norm1", "conv1", "norm2", "conv2")
_T5_BLOCK = (
    "layer.0.SelfAttention.q", "layer.0.SelfAttention.k", "layer.0.SelfAttention.v", "layer.0.SelfAttention.o",
    "layer.0.layer_norm", "layer.1.DenseReluDense.wo", "layer.1.layer_norm",
)  # fmt: skip
# Convolutions of the temporal autoencoder's residual blocks have no bias.
_TEMPORAL = ("norm1.weight", "norm1.bias", "conv1.conv.weight", "norm2.weight", "norm2.bias", "conv2.conv.weight")


def transformer_of(kind: str, shapes: Shapes) -> ModelConfig:
    """The configuration of a transformer with parameters of these shapes. KeyError names what is not there.

    Heads are told by norms or rotary tables only; without them any number would do, and 16 is taken where it divides.
    """
    hidden = shapes["t_embedder.mlp.0.weight"][0]
    patches = shapes["x_embedder.proj.weight"]
    head = shapes.get("rope.freqs", (0,))[0] * 2
    head = next((shape[0] for name, shape in shapes.items() if name.endswith(".q_norm.weight")), head)
    first = "spatial_blocks.0." if kind == "stdit3" else "blocks.0."
    indices = [int(found[1]) for name in shapes if (found := re.match(r"(?:spatial_|temporal_)?blocks\.(\d+)\.", name))]
    volume = patches[2] * patches[3] * patches[4]
    return ModelConfig.model_validate({
        "type": _TYPES[kind], "hidden_size": hidden, "depth": 1 + max(indices, default=0),
        "num_heads": hidden // head if head else 16 if hidden % 16 == 0 else 1,
        "in_channels": patches[1], "patch_size": patches[2:],
        "mlp_ratio": shapes[f"{first}mlp.fc1.weight"][0] / hidden,
        "caption_channels": shapes["y_embedder.y_proj.fc1.weight"][1],
        "model_max_length": shapes.get("y_embedder.y_embedding", (120,))[0],
        "pred_sigma": shapes["final_layer.linear.weight"][0] == 2 * volume * patches[1],
        "qk_norm": any(name.endswith(".q_norm.weight") for name in shapes),
    })  # fmt: skip


def expected_shapes(kind: str, shapes: Shapes) -> dict[str, tuple[int, ...] | None]:
    """Names that whole weights of ``kind`` have, with their shapes where the kind fixes them (None: any)."""
    if kind in _TYPES:
        model = transformer_of(kind, shapes)
        wanted = parameter_shapes(model)
        if kind == "pixart":
            wanted = {name: shape for name, shape in wanted.items() if ".attn_temp." not in name}
        return dict(wanted)
    return dict.fromkeys(_t5(shapes) if kind == "t5" else _autoencoder(kind, shapes))


def _t5(names: Iterable[str]) -> list[str]:
    names = list(names)
    blocks = _count(names, r"^encoder\.block\.(\d+)\.")
    gated = any(name.endswith(".wi_0.weight") for name in names)
    inner = ("layer.1.DenseReluDense.wi_0", "layer.1.DenseReluDense.wi_1") if gated else ("layer.1.DenseReluDense.wi",)
    wanted = [f"encoder.block.{index}.{part}.weight" for index in range(blocks) for part in (*_T5_BLOCK, *inner)]
    table = "shared.weight" if "encoder.embed_tokens.weight" not in names else "encoder.embed_tokens.weight"
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return [*wanted, table, bias, "encoder.final_layer_norm.weight"]


def _autoencoder(kind: str, names: Iterable[str]) -> list[str]:
    """Parts of both autoencoders; every block of residual layers that is there must be whole."""
    names = list(names)
    wanted: list[str] = []
    prefix = next((name.partition("encoder.")[0] for name in names if re.search(r"encoder\.conv_in\.weight$", name)
                   and not name.startswith("temporal_vae.")), "")  # fmt: skip
    temporal = "temporal_vae." if any(name.startswith("temporal_vae.") for name in names) else ""
    if kind == "vae2d" or any(name.startswith("spatial_vae.") for name in names):
        wanted += _both(f"{prefix}{part}" for part in ("quant_conv", "post_quant_conv"))
        for side, levels in (("encoder", "down_blocks"), ("decoder", "up_blocks")):
            head = f"{prefix}{side}"
            wanted += _both(f"{head}.{part}" for part in ("conv_in", "conv_norm_out", "conv_out"))
            wanted += _both(f"{head}.mid_block.attentions.0.{part}"
                            for part in ("group_norm", "to_q", "to_k", "to_v", "to_out.0"))  # fmt: skip
            blocks = [f"{head}.mid_block.resnets.{index}" for index in range(2)]
            count = _count(names, rf"^{re.escape(head)}\.{levels}\.(\d+)\.")
            for level in range(max(count, 1)):
                place = f"{head}.{levels}.{level}.resnets"
                blocks += [
                    f"{place}.{index}" for index in range(max(1, _count(names, rf"^{re.escape(place)}\.(\d+)\.")))
                ]
            wanted += _both(f"{block}.{part}" for block in blocks for part in _RESNET)
    if kind == "vae":
        parts = ("quant_conv.conv", "post_quant_conv.conv", "encoder.norm1", "encoder.conv2.conv", "decoder.conv1.conv",
                 "decoder.norm1", "decoder.conv_out.conv")  # fmt: skip
        wanted += _both(f"{temporal}{part}" for part in parts) + [f"{temporal}encoder.conv_in.conv.weight"]
        block = re.compile(rf"({re.escape(temporal)}\w+\.(?:block_)?res_blocks\.[\d.]+)\.")
        found = {match[1] for name in names if (match := block.match(name))}
        wanted += [f"{place}.{part}" for place in sorted(found) for part in _TEMPORAL]
    return wanted


def _both(names: Iterable[str]) -> list[str]:
    return [f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")]


def _count(names: Iterable[str], pattern: str) -> int:
    return 1 + max((int(found[1]) for name in names if (found := re.match(pattern, name))), default=-1)

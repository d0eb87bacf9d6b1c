"""Names of parameters by MindSpore's, Stable Diffusion's and PyTorch's ways.

PyTorch's are the original state-dict keys, which everything here uses. The reference's MindSpore names differ by rule:
norms have gamma and beta, embeddings an embedding_table; its autoencoders are named as Stable Diffusion's. Upstream:
mindone examples/opensora_hpcai/tools (convert_*.py, ms_pnames_vae*.txt).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

KINDS = ("stdit", "stdit2", "stdit3", "pixart", "vae2d", "vae", "t5")
_LEAVES = {
    "gamma": "weight", "beta": "bias", "embedding_table": "weight", "moving_mean": "running_mean",
    "moving_variance": "running_var",
}  # fmt: skip
# How training wraps a model: prefixes that say nothing about it.
_WRAPPERS = ("network.", "_backbone.", "_orig_mod.")
# Beginnings of what an optimizer or a training loop keeps beside the model.
TRAINING_STATE = (
    "optimizer.", "moments1.", "moments2.", "adam_m.", "adam_v.", "moment1.", "moment2.", "ema.", "swap.", "exp_avg.",
    "exp_avg_sq.", "beta1_power", "beta2_power", "learning_rate", "global_step", "scale_sense", "epoch_num", "cur_step",
    "loss_scale", "current_iterator_step", "last_overflow_iterator_step",
)  # fmt: skip


def to_torch(name: str) -> str:
    """A parameter's PyTorch name from either way of naming it."""
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    name = name.replace("._backbone", "").replace("._orig_mod", "")
    head, dot, leaf = name.rpartition(".")
    return head + dot + _LEAVES.get(leaf, leaf)


def to_mindspore(name: str, kind: str) -> str:
    """The reference's name of a parameter, from PyTorch's; of autoencoders from Stable Diffusion's."""
    head, dot, leaf = name.rpartition(".")
    owner = head.rpartition(".")[2]
    if kind == "t5":
        embedding = owner in ("shared", "embed_tokens", "relative_attention_bias")
        return f"{head}.embedding_table" if embedding and leaf == "weight" else name
    if "norm" in owner:
        return head + dot + {"weight": "gamma", "bias": "beta"}.get(leaf, leaf)
    return name


def kind_of(names: Iterable[str]) -> str | None:
    """What the weights are of, by names as :func:`to_torch` gives them; None where nothing tells."""
    known = set(names)
    text = "\n".join(sorted(known))
    for kind, pattern in (
        ("vae", r"(?m)^temporal_vae\.|\bblock_res_blocks\.0\."),
        ("stdit3", r"(?m)^(?:module\.)?temporal_blocks\."),
        ("stdit2", r"(?m)^(?:module\.)?(?:t_block_temp|fl_embedder)\."),
        ("stdit", r"(?m)^(?:module\.)?blocks\.\d+\.attn_temp\."),
        ("pixart", r"(?m)^(?:module\.)?blocks\.\d+\.cross_attn\."),
        ("t5", r"(?m)SelfAttention\.q\.weight$"),
        ("vae2d", r"(?m)encoder\.(?:down_blocks|down)\.0\."),
    ):
        if re.search(pattern, text):
            return kind
    return None


# Stable Diffusion's names of the image autoencoder's parts -> diffusers'. Levels of the decoder count the other way.
_SD_PARTS = (
    (r"\bencoder\.down\.(\d+)\.block\.(\d+)\.", r"encoder.down_blocks.\1.resnets.\2."),
    (r"\bencoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"\bmid\.block_1\.", "mid_block.resnets.0."),
    (r"\bmid\.block_2\.", "mid_block.resnets.1."),
    (r"\bmid\.attn_1\.norm\.", "mid_block.attentions.0.group_norm."),
    (r"\bmid\.attn_1\.proj_out\.", "mid_block.attentions.0.to_out.0."),
    (r"\bmid\.attn_1\.([qkv])\.", r"mid_block.attentions.0.to_\1."),
    (r"\bnin_shortcut\.", "conv_shortcut."),
    (r"\b(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
)
# Names of attention in diffusers before 0.17.
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_SD_UP = re.compile(r"\bdecoder\.up\.(\d+)\.(?:block\.(\d+)|upsample)\.")


def from_stable_diffusion(names: Iterable[str]) -> dict[str, str]:
    """diffusers' name of every parameter of an image autoencoder, whichever way it is named."""
    names = list(names)
    levels = 1 + max((int(found[1]) for name in names if (found := _SD_UP.search(name))), default=-1)

    def up(found: re.Match[str]) -> str:
        block = f"decoder.up_blocks.{levels - 1 - int(found[1])}."
        return block + (f"resnets.{found[2]}." if found[2] is not None else "upsamplers.0.")

    renamed = {}
    for name in names:
        new = _SD_UP.sub(up, name)
        for pattern, replacement in _SD_PARTS:
            new = re.sub(pattern, replacement, new)
        renamed[name] = re.sub(
            r"(attentions\.0\.)(query|key|value|proj_attn)\.", lambda found: f"{found[1]}{_OLD[found[2]]}.", new
        )
    return renamed


_DIFFUSERS_PARTS = (
    (r"\bencoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.", r"encoder.down.\1.block.\2."),
    (r"\bencoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
    (r"\bmid_block\.resnets\.0\.", "mid.block_1."),
    (r"\bmid_block\.resnets\.1\.", "mid.block_2."),
    (r"\bmid_block\.attentions\.0\.group_norm\.", "mid.attn_1.norm."),
    (r"\bmid_block\.attentions\.0\.to_out\.0\.", "mid.attn_1.proj_out."),
    (r"\bmid_block\.attentions\.0\.to_([qkv])\.", r"mid.attn_1.\1."),
    (r"\bconv_shortcut\.", "nin_shortcut."),
    (r"\b(encoder|decoder)\.conv_norm_out\.", r"\1.norm_out."),
)
_DIFFUSERS_UP = re.compile(r"\bdecoder\.up_blocks\.(\d+)\.(?:resnets\.(\d+)|upsamplers\.0)\.")


def to_stable_diffusion(name: str, levels: int) -> str:
    """Stable Diffusion's name of a parameter of an image autoencoder, from diffusers'; others stay as they are."""
    if name.startswith("temporal_vae."):
        return name

    def up(found: re.Match[str]) -> str:
        block = f"decoder.up.{levels - 1 - int(found[1])}."
        return block + (f"block.{found[2]}." if found[2] is not None else "upsample.")

    name = _DIFFUSERS_UP.sub(up, name)
    for pattern, replacement in _DIFFUSERS_PARTS:
        name = re.sub(pattern, replacement, name)
    return name


def levels_of(names: Iterable[str]) -> int:
    """Levels of an image autoencoder named as diffusers does."""
    return 1 + max((int(found[1]) for name in names if (found := _DIFFUSERS_UP.search(name))), default=3)


ATTENTION_1X1 = re.compile(r"attentions\.0\.to_(?:q|k|v|out\.0)\.weight$")

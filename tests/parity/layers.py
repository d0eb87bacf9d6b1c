"""Building blocks on their own: embeddings, attention, norms, tables, final layer."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn

from models import ops
from models.layers.attention import Attention, CrossAttention, RotaryTable, Rotate, mask_bias, packed_mask
from models.layers.embeddings import (
    CaptionEmbedder,
    PatchEmbed3D,
    PositionTable2D,
    SizeEmbedder,
    TimestepEmbedder,
    sine_features,
)
from models.layers.linear import RMSNorm
from models.layers.modulation import FinalLayer
from models.layers.tables import timestep_frequencies
from models.weights import load_state_dict
from tests.parity.cases import Arrays, Case, part


def _filled(cell: nn.Cell, case: Case, prefix: str) -> nn.Cell:
    load_state_dict(cell, part(case.weights, prefix))
    return cell


def run(case: Case) -> Arrays:
    """All recorded tensors of the case, computed."""
    groups = (_time, _size, _caption, _attention, _cross, _final, _small, _positions)
    computed: dict[str, Tensor | np.ndarray] = {}
    for group in groups:
        computed |= group(case)
    return {key: value.asnumpy() if isinstance(value, Tensor) else value for key, value in computed.items()}


def _time(case: Case) -> dict[str, Tensor | np.ndarray]:
    t = case.need("time/t")
    embedder = _filled(TimestepEmbedder(case.config["init"]["hidden"]), case, "t_embedder")
    result: dict[str, Tensor | np.ndarray] = {"time/emb": embedder(t), "time/freqs": timestep_frequencies(128)}
    for key in ("features", "features_odd"):
        reference = case.outputs.get(f"time/{key}")
        if reference is not None:
            width = reference.shape[1]
            result[f"time/{key}"] = sine_features(t, Tensor(timestep_frequencies(width // 2)), odd=bool(width % 2))
    return result


def _size(case: Case) -> dict[str, Tensor | np.ndarray]:
    width = case.weights["size_embedder.mlp.2.weight"].shape[0]
    embedder = _filled(SizeEmbedder(width), case, "size_embedder")
    sizes, tiled = case.need("size/s"), case.need("size/tiled")
    rows = case.outputs["size/emb_tiled"].shape[0]
    return {
        "size/emb": embedder(sizes, sizes.shape[0]),
        "size/emb_tiled": embedder(tiled, rows),
        "size/emb_1d": embedder(sizes[:, 0], sizes.shape[0]),
    }


def _caption(case: Case) -> dict[str, Tensor | np.ndarray]:
    init = case.config["init"]
    embedder = _filled(CaptionEmbedder(init["caption"], init["hidden"], init["L"]), case, "caption")
    y = case.need("caption/y")
    return {"caption/keep": embedder(y), "caption/forced": embedder(y, case.need("caption/drop"))}


def _attention(case: Case) -> dict[str, Tensor | np.ndarray]:
    hidden, heads = case.config["init"]["hidden"], case.config["init"]["heads"]
    x = case.need("attn/x")
    rope = _filled(RotaryTable(hidden // heads), case, "rope")(x.shape[1])
    plain = _filled(Attention(hidden, heads), case, "attn")
    normed = _filled(Attention(hidden, heads, qk_norm=True), case, "attn_qk")
    rotated = _filled(Attention(hidden, heads, qk_norm=True, rope=True), case, "attn_rope")
    legacy = _filled(Attention(hidden, heads, qk_norm=True, rope=True, norm_last=True), case, "attn_rope_legacy")
    return {
        "attn/attn": plain(x),
        "attn/attn_qk": normed(x),
        "attn/attn_rope": rotated(x, rope),
        "attn/attn_rope_legacy": legacy(x, rope),
    }


def _cross(case: Case) -> dict[str, Tensor | np.ndarray]:
    hidden, heads = case.config["init"]["hidden"], case.config["init"]["heads"]
    cross = _filled(CrossAttention(hidden, heads), case, "cross")
    x, text = case.need("cross/x"), case.need("cross/cond")
    lengths = Tensor(np.asarray(case.config["cross_lengths"], np.int64))
    return {"cross/packed": cross(x, text, mask_bias(packed_mask(lengths, text.shape[1])))}


def _final(case: Case) -> dict[str, Tensor | np.ndarray]:
    hidden, patch = case.config["init"]["hidden"], case.config["init"]["patch"]
    volume = int(np.prod(patch))
    channels = case.weights["final.linear.bias"].shape[0] // volume
    final = _filled(FinalLayer(hidden, volume, channels), case, "final")
    x, t, t0, x_mask = (case.need(f"final/{key}") for key in ("x", "t", "t0", "x_mask"))
    return {"final/plain": final(x, t), "final/x_mask": final(x, t, x_mask, t0, x_mask.shape[1])}


def _small(case: Case) -> dict[str, Tensor | np.ndarray]:
    init = case.config["init"]
    rms = _filled(RMSNorm(case.weights["rms.weight"].shape[0]), case, "rms")
    patch_in = case.need("patch/x")
    patch = _filled(PatchEmbed3D(tuple(init["patch"]), patch_in.shape[1], init["hidden"]), case, "patch")
    q = case.need("rope/q")
    rope = _filled(RotaryTable(q.shape[-1]), case, "rope")(q.shape[2])
    x, t, t0 = case.need("attn/x"), case.need("final/t"), case.need("final/t0")
    return {
        "rms/out": rms(case.need("rms/x")),
        "patch/out": patch(patch_in),
        "rope/out": Rotate(q.shape[-1])(q, *rope),
        "modulate/t2i": ops.modulate(x, t.expand_dims(1), t0.expand_dims(1)),
    }


def _positions(case: Case) -> dict[str, Tensor | np.ndarray]:
    table = PositionTable2D(case.config["init"]["hidden"])
    result: dict[str, Tensor | np.ndarray] = {}
    for index, item in enumerate(case.config.get("pos2d", [])):
        result[f"pos2d/{index}"] = table(item["h"], item["w"], item["scale"], item["base"])
    return result

"""Training that starts from other weights: what fits, what may be missing, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from models.checkpoint.state import initialize_from
from models.config import ModelConfig
from models.convert.fit import fit, grouped
from models.convert.stored import Weights, of_array
from models.exits import PayloadError
from models.parallel.mesh import Mesh
from models.parallel.world import World
from models.shapes import parameter_shapes
from models.step import TrainStep
from models.weights import state_dict
from tests.layouts import cases
from tests.models.torch_writer import Tensor, write_zip

SIZES = {"in_channels": 3, "hidden_size": 24, "depth": 2, "num_heads": 2, "caption_channels": 6, "model_max_length": 4}
GRID = (2, 2, 3)

pytestmark = pytest.mark.train


def pixart(length: int = 4, multi_scale: bool = False) -> dict[str, np.ndarray]:
    """A PixArt of the same width: an STDiT without time, whose patches are images'."""
    draw = np.random.default_rng(5).standard_normal
    shapes = parameter_shapes(ModelConfig(type="STDiT", **(SIZES | {"model_max_length": length})))
    arrays = {name: draw(shape).astype(np.float32) for name, shape in shapes.items() if "attn_temp" not in name}
    arrays["x_embedder.proj.weight"] = arrays["x_embedder.proj.weight"][:, :, 0]
    arrays["pos_embed"] = draw((1, 9, 24)).astype(np.float32)
    if multi_scale:
        for name in ("csize_embedder", "ar_embedder"):
            for part, shape in (("mlp.0.weight", (8, 256)), ("mlp.0.bias", (8,)), ("mlp.2.weight", (8, 8)),
                                ("mlp.2.bias", (8,))):  # fmt: skip
                arrays[f"{name}.{part}"] = draw(shape).astype(np.float32)
    return arrays


def stored(arrays: dict[str, np.ndarray]) -> Weights:
    return {name: of_array(array) for name, array in arrays.items()}


@pytest.mark.parametrize("kind", ["STDiT", "STDiT2", "STDiT3"])
@pytest.mark.parametrize("multi_scale", [False, True])
def test_pixart_gives_the_spatial_part(kind: str, multi_scale: bool) -> None:
    model = ModelConfig(type=kind, **SIZES)  # type: ignore[arg-type]
    found = fit(stored(pixart(multi_scale=multi_scale)), parameter_shapes(model, GRID), model)
    assert (found.kind, found.problems()) == ("pixart", [])
    blocks = "spatial_blocks" if kind == "STDiT3" else "blocks"
    assert {f"{blocks}.{index}.mlp.fc1.weight" for index in range(2)} <= set(found.taken)
    assert ("csize_embedder.mlp.0.weight" in found.taken) == (multi_scale and kind == "STDiT2")
    assert all("temp" in name or "norm" in name or "embed" in name or name == "rope.freqs" for name in found.kept)
    assert any("temp" in name for name in found.kept)
    assert found.taken["x_embedder.proj.weight"].stored.values().shape == (24, 3, 1, 2, 2)
    text = "\n".join(found.summary())
    assert "left as initialised" in text and "x_embedder.proj.weight" in text


@pytest.mark.parametrize(("length", "expected"), [(2, [0, 1, 1, 1]), (6, [0, 1, 2, 3])])
def test_the_null_caption_is_cut_or_continued(length: int, expected: list[int]) -> None:
    model = ModelConfig(type="STDiT", **SIZES)
    arrays = pixart(length)
    table = fit(stored(arrays), parameter_shapes(model), model).taken["y_embedder.y_embedding"].stored.values()
    np.testing.assert_array_equal(table, arrays["y_embedder.y_embedding"][expected])


def test_nothing_spatial_may_be_missing_nothing_may_be_left_over() -> None:
    model = ModelConfig(type="STDiT3", **SIZES)
    arrays = pixart()
    del arrays["blocks.1.attn.qkv.weight"]
    arrays["adapter.weight"] = np.zeros(3, np.float32)
    arrays["t_block.1.bias"] = np.zeros(5, np.float32)
    assert fit(stored(arrays), parameter_shapes(model), model).problems() == [
        "missing: spatial_blocks.1.attn.qkv.weight",
        "shape: t_block.1.bias is [5], the model has [144]",
        "unexpected: adapter.weight",
    ]
    # One's own weights have no excuse for missing time.
    own = {name: np.zeros(shape, np.float32) for name, shape in parameter_shapes(model).items()}
    del own["temporal_blocks.0.attn.qkv.weight"], own["rope.freqs"]
    assert fit(stored(own), parameter_shapes(model), model).problems() == ["missing: temporal_blocks.0.attn.qkv.weight"]


def test_names_of_the_reference_and_of_data_parallelism() -> None:
    model = ModelConfig(type="STDiT2", **SIZES)
    shapes = parameter_shapes(model)
    arrays = {
        f"network.{name.replace('_norm.weight', '_norm.gamma')}".replace("blocks.1", "blocks.1._backbone"):
        np.full(shape, 2, np.float32) for name, shape in shapes.items()
    }  # fmt: skip
    found = fit(stored(arrays), shapes, model)
    assert found.problems() == [] and len(found.taken) == len(shapes)
    wrapped = {f"module.{name}": np.zeros(shape, np.float32) for name, shape in shapes.items()}
    assert fit(stored(wrapped), shapes, model).problems() == []


def test_groups_of_names() -> None:
    assert grouped(["blocks.0.a", "blocks.1.a", "x", "spatial.3.b.0.c"]) == ["blocks.*.a (2)", "x", "spatial.*.b.*.c"]


def step(kind: str, **changes: Any) -> TrainStep:
    model = {"type": kind, **SIZES, "patch_size": [1, 2, 2]}
    data = {"image_size": [4, 6], "num_frames": 2}
    config = cases.config(cases.Case(), model=model, data=data, mask_ratios=None, **changes)
    return TrainStep(config, Mesh(World(), config.layout), fixed_shape=True)


def test_a_pth_file_of_pixart_starts_training(tmp_path: Path) -> None:
    arrays = pixart()
    write_zip(tmp_path / "PixArt.pth", {"state_dict": {name: Tensor(array) for name, array in arrays.items()}})
    train = step("STDiT")
    tables = state_dict(train.model)
    lines = initialize_from(train, tmp_path / "PixArt.pth")
    after = state_dict(train.model)
    np.testing.assert_array_equal(after["blocks.1.mlp.fc2.weight"], arrays["blocks.1.mlp.fc2.weight"])
    np.testing.assert_array_equal(after["x_embedder.proj.weight"][:, :, 0], arrays["x_embedder.proj.weight"])
    np.testing.assert_array_equal(after["pos_embed"], tables["pos_embed"])
    assert not after["blocks.0.attn_temp.proj.weight"].any()
    assert any("attn_temp" in line and "left as initialised" in line for line in lines)


def test_partial_weights_are_refused_unless_asked_for(tmp_path: Path) -> None:
    arrays = state_dict(step("STDiT3", seed=9).model)
    kept = {name: value for name, value in arrays.items() if not name.startswith("temporal_blocks.1.")}
    save_file(kept, tmp_path / "part.safetensors")
    train = step("STDiT3")
    before = state_dict(train.model)
    with pytest.raises(PayloadError, match="17 differences") as caught:
        initialize_from(train, tmp_path / "part.safetensors")
    assert "temporal_blocks.1.attn.qkv.weight" in caught.value.why and "allow_partial" in caught.value.next_step
    assert all(np.array_equal(before[name], value) for name, value in state_dict(train.model).items())
    partial = step("STDiT3", allow_partial=True)
    lines = initialize_from(partial, tmp_path / "part.safetensors")
    assert any("missing" in line and "temporal_blocks.*" in line for line in lines)
    after = state_dict(partial.model)
    np.testing.assert_array_equal(after["t_block.1.weight"], arrays["t_block.1.weight"])
    save_file({"something.else": np.zeros(2, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(PayloadError, match="do not fit"):
        initialize_from(partial, tmp_path / "other.safetensors")

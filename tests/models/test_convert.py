"""Reading weights of other programs, translating their names, writing them: python -m models.convert."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models.config import ModelConfig
from models.convert.__main__ import main
from models.convert.expected import transformer_of
from models.convert.files import open_weights
from models.convert.mindspore_files import ckpt_chunks
from models.convert.names import from_stable_diffusion, kind_of, to_mindspore, to_stable_diffusion, to_torch
from models.convert.plan import make_plan
from models.convert.stored import Stored, of_array
from models.exits import BAD_CHECKPOINT, BAD_CONFIG, PayloadError
from models.shapes import parameter_shapes
from tests.models.torch_writer import Tensor, write_legacy, write_zip

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden"
SMALL = {"in_channels": 2, "hidden_size": 24, "depth": 2, "num_heads": 2, "caption_channels": 6, "model_max_length": 4}
FORMATS = {"zip": write_zip, "legacy": write_legacy}


def weights(kind: str = "STDiT3") -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0).standard_normal
    shapes = parameter_shapes(ModelConfig(**{"type": kind, **SMALL}), (2, 2, 3))
    return {name: draw(shape).astype(np.float32) for name, shape in shapes.items()}


def as_tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: Tensor(array) for name, array in arrays.items()}


def write_ckpt(path: Path, arrays: dict[str, np.ndarray]) -> None:
    path.write_bytes(b"".join(ckpt_chunks({name: of_array(array) for name, array in arrays.items()})))


def equal(path: Path, arrays: dict[str, np.ndarray]) -> bool:
    found = load_file(path)
    return found.keys() == arrays.keys() and all(np.array_equal(found[name], arrays[name]) for name in arrays)


def failure(path: Path, take: str | None = None) -> str:
    with pytest.raises(PayloadError) as caught:
        open_weights(path, take)
    assert (caught.value.exit_code, caught.value.what) == (BAD_CHECKPOINT, "weights cannot be read")
    assert caught.value.where == str(path) and caught.value.next_step
    return caught.value.why


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
def test_types_views_and_shared_values(tmp_path: Path, write: Callable[[Path, Any], None]) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    shared = Tensor(array)
    bits = np.array([0x3F80, 0xC040], np.uint16)
    content = {
        "a": shared, "b": shared, "turned": Tensor(array, transposed=True), "half": Tensor(array.astype(np.float16)),
        "brain": Tensor(bits, bf16=True), "whole": Tensor(np.array([1, -2], np.int64)),
        "scalar": Tensor(np.array(3.0, np.float32)), "step": 7, "name": "x",
    }  # fmt: skip
    write(tmp_path / "x.pth", content)
    source = open_weights(tmp_path / "x.pth")
    values = {name: stored.values() for name, stored in source.weights.items()}
    assert source.others == ["step", "name"]
    np.testing.assert_array_equal(values["a"], array)
    np.testing.assert_array_equal(values["b"], array)
    np.testing.assert_array_equal(values["turned"], array.T)
    np.testing.assert_array_equal(values["half"], array)
    assert values["brain"].tolist() == [1.0, -3.0] and source.weights["brain"].dtype == "BF16"
    assert values["whole"].tolist() == [1, -2] and values["scalar"].shape == ()


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
def test_sections(tmp_path: Path, write: Callable[[Path, Any], None]) -> None:
    raw, averaged = {"w": Tensor(np.zeros(2, np.float32))}, {"w": Tensor(np.ones(2, np.float32))}
    path = tmp_path / "x.pt"
    write(path, {"state_dict": raw, "ema": averaged, "epoch": 3, "deep": {"inner": raw}})
    assert (open_weights(path).section, open_weights(path).weights["w"].values().tolist()) == ("ema", [1, 1])
    assert open_weights(path, "state_dict").weights["w"].values().tolist() == [0, 0]
    assert open_weights(path, "deep.inner").weights["w"].values().tolist() == [0, 0]
    assert "no section 'model'; it has state_dict, ema, deep" in failure(path, "model")
    write(path, {"epoch": 3})
    assert "holds no tensors" in failure(path)
    write(path, [1, 2])
    assert "no mapping" in failure(path)


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
def test_truncated_files(tmp_path: Path, write: Callable[[Path, Any], None]) -> None:
    path = tmp_path / "x.pth"
    write(path, as_tensors({"w": np.ones((4, 5), np.float32)}))
    data = path.read_bytes()
    for size in (0, 3, 40, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        assert failure(path)


class Harm:
    """Creates a file when a pickle is trusted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


class Builtin(Harm):
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({str(self.path)!r}, 'w')",)


@pytest.mark.parametrize("kind", [Harm, Builtin])
def test_a_malicious_pickle_does_nothing(tmp_path: Path, kind: type[Harm]) -> None:
    mark, path = tmp_path / "harm", tmp_path / "x.pth"
    for write in FORMATS.values():
        write(path, {"state_dict": {"w": kind(mark)}})
        assert "nothing was run" in failure(path)
    path.write_bytes(pickle.dumps(kind(mark)))
    assert "nothing was run" in failure(path)
    # Names within allowed modules are no way in either, nor are attributes of what is allowed.
    for name in (b"ctorch\nload\n", b"ccollections\nOrderedDict.__init__.__globals__\n", b"cbuiltins\ngetattr\n"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", b"\x80\x02" + name + b".")
        assert "nothing was run" in failure(path)
    assert not mark.exists()


def test_tensors_that_reach_beyond_their_values(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    write_zip(path, {"w": Tensor(np.ones(4, np.float32))})
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["archive/data.pkl"] = parts["archive/data.pkl"].replace(b"K\x04\x85", b"K\x05\x85")  # a shape of 5
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    assert "reaches beyond" in failure(path)


def test_damage_in_the_middle_is_seen_when_values_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, target = tmp_path / "x.pth", tmp_path / "y.safetensors"
    arrays = weights("STDiT2")
    write_zip(path, as_tensors(arrays))
    data = bytearray(path.read_bytes())
    place = data.find(arrays["t_block.1.weight"].tobytes())
    data[place + 100] ^= 1
    path.write_bytes(data)
    assert main([str(path), str(target)]) == BAD_CHECKPOINT
    told = capsys.readouterr().err
    assert "damaged" in told and str(path) in told and "Traceback" not in told
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.pth"]


def test_other_files(tmp_path: Path) -> None:
    for name, data, why in (
        ("page.bin", b"<html>404 not found, but quite long</html>", "damaged pickle"),
        ("page.ckpt", b"<html>404 not found, but quite long</html>", "checkpoint of MindSpore"),
        ("page.safetensors", b"<html>404 not found, but quite long</html>", "safetensors"),
        ("page.txt", b"just text that is long enough", "neither"),
    ):
        (tmp_path / name).write_bytes(data)
        assert why in failure(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a.jpg", "x")
    assert "not one of torch.save" in failure(tmp_path / "photos.zip")
    assert failure(tmp_path / "nothing.pth") == "No such file or directory"
    (tmp_path / "empty").mkdir()
    assert "folder without weights" in failure(tmp_path / "empty")


def test_mindspore_checkpoints_are_read_and_written_as_mindspore_does(tmp_path: Path) -> None:
    import mindspore

    arrays = {"a.gamma": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float16([1, 2]), "n": np.int32([[3]])}
    theirs, ours = tmp_path / "theirs.ckpt", tmp_path / "ours.ckpt"
    entries = [{"name": name, "data": mindspore.Tensor(array)} for name, array in arrays.items()]
    mindspore.save_checkpoint(entries, str(theirs), append_dict={"epoch_num": 3})
    found = open_weights(theirs).weights
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name].read(), array)
        assert found[name].shape == array.shape
    write_ckpt(ours, arrays)
    loaded = mindspore.load_checkpoint(str(ours))
    assert all(np.array_equal(loaded[name].asnumpy(), array) for name, array in arrays.items())
    data = ours.read_bytes()
    for size in (5, 30, len(data) - 1):
        ours.write_bytes(data[:size])
        assert failure(ours)


def test_large_tensors_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.convert.mindspore_files._PART", 16)
    array = np.arange(50, dtype=np.float32).reshape(5, 10)
    write_ckpt(tmp_path / "x.ckpt", {"w": array})
    np.testing.assert_array_equal(open_weights(tmp_path / "x.ckpt").weights["w"].read(), array)


def test_shards_of_an_index(tmp_path: Path) -> None:
    arrays = weights("STDiT2")
    halves = list(arrays)[::2], list(arrays)[1::2]
    names = {}
    for number, half in enumerate(halves):
        file = f"pytorch_model-0000{number + 1}-of-00002.bin"
        write_zip(tmp_path / file, as_tensors({name: arrays[name] for name in half}))
        names |= dict.fromkeys(half, file)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert main([str(tmp_path), str(tmp_path / "out.safetensors")]) == 0
    assert equal(tmp_path / "out.safetensors", arrays)
    index.write_text(json.dumps({"weight_map": names | {"more": "pytorch_model-00001-of-00002.bin"}}))
    assert "more, which is not in" in failure(index)
    index.write_text(json.dumps({"weight_map": {"a": "gone.bin"}}))
    assert "does not exist: gone.bin" in failure(index)
    index.write_text(json.dumps({"weight_map": {"a": "../secret.bin"}}))
    assert "another folder" in failure(index)
    index.write_text("[]")
    assert "not an index" in failure(index)


@pytest.mark.parametrize("case", ["06a_iddpm_v1_0", "06b_iddpm_v1_1", "05_rflow_v1_2", "03b_stdit3_options"])
def test_there_and_back(case: str, tmp_path: Path) -> None:
    source = GOLDEN / case / "weights.safetensors"
    arrays = load_file(source)
    for target in ("x.ckpt", "ms.safetensors"):
        assert main([str(source), str(tmp_path / target), "--to", "mindspore"]) == 0
        names = open_weights(tmp_path / target).weights
        assert not any(name.endswith("q_norm.weight") for name in names)
        assert main([str(tmp_path / target), str(tmp_path / "back.safetensors"), "--force"]) == 0
        assert equal(tmp_path / "back.safetensors", arrays)


def autoencoder() -> dict[str, np.ndarray]:
    """An image autoencoder of two levels, as diffusers names it."""
    arrays: dict[str, np.ndarray] = {}

    def both(name: str, *shape: int) -> None:
        arrays[f"{name}.weight"] = np.full(shape, len(arrays), np.float32)
        arrays[f"{name}.bias"] = np.full(shape[:1], len(arrays), np.float32)

    both("quant_conv", 4, 4, 1, 1)
    both("post_quant_conv", 2, 2, 1, 1)
    for side, levels in (("encoder", "down_blocks"), ("decoder", "up_blocks")):
        for name in ("conv_in", "conv_norm_out", "conv_out"):
            both(f"{side}.{name}", 8)
        both(f"{side}.mid_block.attentions.0.group_norm", 8)
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            both(f"{side}.mid_block.attentions.0.{name}", 8, 8)
        blocks = [f"{side}.mid_block.resnets.{index}" for index in range(2)]
        blocks += [f"{side}.{levels}.{level}.resnets.0" for level in range(2)]
        for block in blocks:
            for name in ("norm1", "conv1", "norm2", "conv2"):
                both(f"{block}.{name}", 8)
        both(f"{side}.{levels}.1.resnets.0.conv_shortcut", 8, 8, 1, 1)
        both(f"{side}.{levels}.0.{'down' if side == 'encoder' else 'up'}samplers.0.conv", 8)
    return arrays


def test_autoencoders_by_both_names(tmp_path: Path) -> None:
    arrays = autoencoder()
    save_file(arrays, tmp_path / "vae.safetensors")
    assert main([str(tmp_path / "vae.safetensors"), str(tmp_path / "vae.ckpt"), "--to", "mindspore"]) == 0
    names = open_weights(tmp_path / "vae.ckpt").weights
    assert names["decoder.mid.attn_1.proj_out.weight"].shape == (8, 8, 1, 1)
    # Levels of the decoder count from the other end.
    assert {"encoder.down.0.downsample.conv.weight", "decoder.up.1.upsample.conv.bias", "decoder.norm_out.gamma",
            "encoder.down.1.block.0.nin_shortcut.weight", "encoder.mid.attn_1.norm.beta"} <= set(names)  # fmt: skip
    assert main([str(tmp_path / "vae.ckpt"), str(tmp_path / "back.safetensors")]) == 0
    assert equal(tmp_path / "back.safetensors", arrays)
    del arrays["encoder.down_blocks.1.resnets.0.norm2.bias"]
    save_file(arrays, tmp_path / "vae.safetensors")
    plan = make_plan(open_weights(tmp_path / "vae.safetensors"))
    assert (plan.kind, plan.missing) == ("vae2d", ["encoder.down_blocks.1.resnets.0.norm2.bias"])


def test_names() -> None:
    assert to_torch("network.blocks.0._backbone.attn.q_norm.gamma") == "blocks.0.attn.q_norm.weight"
    assert to_torch("shared.embedding_table") == "shared.weight"
    assert to_mindspore("encoder.block.0.layer.0.layer_norm.weight", "t5").endswith("layer_norm.weight")
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert to_torch(to_mindspore(bias, "t5")) == bias
    old = "module.decoder.mid_block.attentions.0.proj_attn.weight"
    assert from_stable_diffusion([old])[old] == "module.decoder.mid_block.attentions.0.to_out.0.weight"
    assert to_stable_diffusion("temporal_vae.encoder.norm1.weight", 4) == "temporal_vae.encoder.norm1.weight"
    kinds = {kind_of(weights(kind)): kind for kind in ("STDiT", "STDiT2", "STDiT3")}
    assert set(kinds) == {"stdit", "stdit2", "stdit3"}
    assert kind_of(["conv.weight"]) is None


def test_sizes_are_told_by_weights() -> None:
    for name, kind in (("stdit2", "STDiT2"), ("stdit3", "STDiT3")):
        config = ModelConfig(**{"type": kind, **SMALL})
        assert transformer_of(name, parameter_shapes(config)) == config


def test_patches_in_two_dimensions_and_training_state(tmp_path: Path) -> None:
    arrays = weights("STDiT2")
    reference = {f"network.{name}": array for name, array in arrays.items()}
    patches = reference.pop("network.x_embedder.proj.weight")
    reference["network.x_embedder.proj.weight"] = patches[:, :, 0]
    reference |= {"moments1.network.t_block.1.bias": np.zeros(3, np.float32), "epoch_num": np.zeros(1, np.float32)}
    write_ckpt(tmp_path / "train_resume.ckpt", reference)
    plan = make_plan(open_weights(tmp_path / "train_resume.ckpt"))
    assert plan.whole and sorted(plan.unused) == ["epoch_num", "moments1.network.t_block.1.bias"]
    assert plan.count("reshaped") == 1 and plan.count("renamed") == len(arrays) - 1
    reference["network.x_embedder.proj.weight"] = patches.reshape(24, -1)
    write_ckpt(tmp_path / "train_resume.ckpt", reference)
    assert main([str(tmp_path / "train_resume.ckpt"), str(tmp_path / "x.safetensors")]) == 0
    assert equal(tmp_path / "x.safetensors", arrays)


def test_the_report_names_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = weights()
    del arrays["temporal_blocks.1.mlp.fc1.bias"]
    arrays["t_block.1.bias"] = np.zeros(3, np.float32)
    arrays["extra"] = np.zeros(3, np.float32)
    save_file(arrays, tmp_path / "x.safetensors")
    arguments = [str(tmp_path / "x.safetensors"), str(tmp_path / "y.safetensors")]
    assert main([*arguments, "--json"]) == BAD_CHECKPOINT
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert (report["kind"], report["whole"], report["written"]) == ("stdit3", False, False)
    assert report["missing"] == ["temporal_blocks.1.mlp.fc1.bias"] and report["unused"] == ["extra"]
    assert report["mismatched"] == [{"name": "t_block.1.bias", "shape": [3], "expected": [144]}]
    assert "nothing was written" in printed.err and not (tmp_path / "y.safetensors").exists()
    assert main([*arguments, "--allow-partial"]) == 0
    assert "missing: temporal_blocks.1.mlp.fc1.bias" in capsys.readouterr().out
    assert set(load_file(tmp_path / "y.safetensors")) == set(arrays) - {"extra"}


def test_targets_and_types(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "x.safetensors"
    save_file(weights(), source)
    assert main([str(source), str(tmp_path / "x.ckpt")]) == BAD_CONFIG
    assert main([str(source), str(source)]) == BAD_CONFIG
    assert "--force" in capsys.readouterr().err
    assert main([str(source), str(tmp_path / "half.safetensors"), "--dtype", "bf16"]) == 0
    stored: Stored = open_weights(tmp_path / "half.safetensors").weights["t_block.1.weight"]
    assert stored.dtype == "BF16"
    np.testing.assert_allclose(stored.values(), weights()["t_block.1.weight"], rtol=1e-2)
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "what.safetensors")
    assert main([str(tmp_path / "what.safetensors"), str(tmp_path / "y.safetensors")]) == BAD_CHECKPOINT
    assert "--kind" in capsys.readouterr().err


def test_pickles_are_read_from_memory_too() -> None:
    from models.convert.torch_files import _load

    assert _load(io.BytesIO(pickle.dumps({"a": [1, 2.5, None, True]}))) == {"a": [1, 2.5, None, True]}

"""Golden vectors: ours against the original's recorded numbers, and the checker's own behaviour."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models.config import OptimizerConfig
from tests.parity.__main__ import kind_of, main
from tests.parity.cases import CaseError
from tests.parity.compare import compare
from tests.parity.tables import compare_tables
from tests.parity.tolerance import Tolerances
from tests.parity.trace import gradient_slack

REPO = Path(__file__).resolve().parents[2]
OWN = REPO / "tests" / "data" / "golden"
SHARED = REPO.parent / "shared" / "golden"
KINDS = (
    "01_stdit_v1_0",
    "02_stdit2_v1_1",
    "03_stdit3_v1_2",
    "03b_stdit3_options",
    "04a_vae2d",
    "04b_vae_temporal",
    "04c_vae_pipeline_v1_2",
    "05_rflow_v1_2",
    "06a_iddpm_v1_0",
    "06b_iddpm_v1_1",
    "07a_buckets_v1_2",
    "07b_buckets_v1_1",
    "08a_masks_prompts_v1_2",
    "08b_masks_prompts_v1_1",
    "08c_text_cleaning",
    "08d_embeddings_layers",
    "08e_sincos_v1_0",
    "09_train_trace",
    "10_transforms",
    "b_08_t5",
    "b_09_discriminator",
    "b_09_gan_losses",
    "b_09_lpips",
    "b_09_psnr_ssim",
    "b_09_vae_loss",
)
CASES = sorted(path for path in OWN.iterdir() if path.is_dir())
CASES += [SHARED / name for name in KINDS if (SHARED / name).is_dir()]

pytestmark = pytest.mark.train


def _report(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 1
    return json.loads(lines[0])


def _copy(name: str, target: Path) -> Path:
    shutil.copytree(OWN / name, target, copy_function=shutil.copyfile)
    return target


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parents[1].name}-{path.name}")
def test_case_is_within_tolerance(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main([str(path)])
    report = _report(capsys)
    assert report["failed"] == []
    assert (status, report["verdict"]) == (0, "pass")
    outputs = path / "outputs.safetensors"
    tensors = [key for key in report["tensors"] if not key.startswith("outputs.json/")]
    assert len(tensors) == (len(load_file(outputs)) if outputs.exists() else 0)
    assert (len(report["tensors"]) > len(tensors)) == (path / "outputs.json").exists()


def test_an_unseen_folder_without_tolerances_uses_the_measured_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _copy("03b_stdit3_options", tmp_path / "03_stdit3_v1_2_seed7")
    assert main([str(path)]) == 0
    assert _report(capsys)["tolerances"] == "float32 errors of the golden README"


@pytest.mark.parametrize("name", ["final_layer.linear.weight", "spatial_blocks.0.attn.qkv.weight", "t_block.1.bias"])
@pytest.mark.parametrize("known", [True, False])
def test_one_weight_off_by_a_thousandth_fails(
    name: str, known: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _copy("03b_stdit3_options", tmp_path / "03b_stdit3_options")
    if known:
        shutil.copyfile(OWN / "tolerances_v1x.json", tmp_path / "tolerances_v1x.json")
    weights = load_file(path / "weights.safetensors")
    weights[name].reshape(-1)[0] += 1e-3
    save_file(weights, path / "weights.safetensors")
    assert main([str(path)]) == 1
    report = _report(capsys)
    assert report["verdict"] == "fail"
    assert "packed_text/out" in report["failed"]


def test_scenarios_may_have_any_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _copy("03b_stdit3_options", tmp_path / "other")
    config = json.loads((path / "config.json").read_text())
    config["scenarios"] = [{"name": "renamed"}]
    config["case"] = "unheard-of"
    (path / "config.json").write_text(json.dumps(config))
    for file in ("inputs.safetensors", "outputs.safetensors"):
        arrays = load_file(path / file)
        kept = {key: value for key, value in arrays.items() if key.startswith("packed_text_x_mask/")}
        save_file({key.replace("packed_text_x_mask", "renamed"): value for key, value in kept.items()}, path / file)
    assert main([str(path)]) == 0
    assert set(_report(capsys)["tensors"]) == {"renamed/out", "renamed/loss"}


def test_missing_recorded_outputs_are_not_a_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _copy("03b_stdit3_options", tmp_path / "case")
    outputs = load_file(path / "outputs.safetensors")
    outputs["packed_text/something_else"] = np.zeros(3, np.float32)
    save_file(outputs, path / "outputs.safetensors")
    assert main([str(path)]) == 1
    assert _report(capsys)["failed"] == ["packed_text/something_else"]


def test_what_cannot_be_run_is_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "cannot read the case" in _report(capsys)["error"]
    (tmp_path / "config.json").write_text(json.dumps({"cls": "opensora.schedulers.dpms", "case": "x"}))
    assert main([str(tmp_path)]) == 2
    assert "opensora.schedulers.dpms" in _report(capsys)["error"]


def test_kinds() -> None:
    assert kind_of({"cls": "opensora.models.stdit.stdit3.STDiT3 (built from STDiT3Config)"}) == "stdit3"
    assert kind_of({"cls": "opensora.schedulers.rf.RFLOW / RFlowScheduler; model: STDiT3"}) == "rflow"
    assert kind_of({"cls": "STDiT3 + RFLOW.training_losses + AdamW + update_ema", "traces": []}) == "trace"
    assert kind_of({"cls": "opensora.schedulers.iddpm.IDDPM (v1.1); model: STDiT2"}) == "iddpm"
    assert kind_of({"cls": "opensora.models.layers.blocks sin-cos tables (v1.0)"}) == "sincos"
    assert kind_of({"cls": "opensora.models.layers.blocks"}) == "layers"
    with pytest.raises(CaseError):
        kind_of({"class": "MMDiT"})


def test_fallback_bounds(tmp_path: Path) -> None:
    bounds = Tolerances("stdit3", tmp_path / "case", None)
    reference = np.array([0.5, -2.0], np.float32)
    assert bounds.bound("a/out", reference).absolute == pytest.approx(2.0 * 10 * 4e-7)
    assert bounds.bound("a/grad/x", reference).absolute == pytest.approx(2.0 * 10 * 9e-7)
    assert bounds.bound("a/loss", np.float32(0.1)).absolute == pytest.approx(1e-6)
    assert bounds.bound("a/x_mask", np.zeros(3, np.uint8)).absolute == 0
    assert Tolerances("transforms", tmp_path / "case", None).bound("0/video_center", reference).absolute == 0


def _change(path: Path, keys: list[str | int], value: object) -> None:
    """Another value somewhere in outputs.json."""
    table = json.loads((path / "outputs.json").read_text())
    place = table
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    (path / "outputs.json").write_text(json.dumps(table))


@pytest.mark.parametrize(
    ("name", "keys", "value", "failed"),
    [
        ("08c_text_cleaning", ["clean_once", 3], "bold and italic text next", "clean_once"),
        ("08b_masks_prompts_v1_1", ["masks", "sets", "mask_image_tail/T3", 0], "111", "masks/sets"),
        ("08b_masks_prompts_v1_1", ["masks", "sets", "mask_quarter_head/T3"], ["011"], "masks/sets"),
        ("08a_masks_prompts_v1_2", ["multi_res", 1, "out", "ar", 0, 0], 0.56339, "multi_res"),
        ("07b_buckets_v1_1", ["sampler", "drop1_world2_rank0", 5, 0], "0-1-1-1", "sampler/drop1_world2_rank0"),
        ("07b_buckets_v1_1", ["buckets", "stage2", "shipped_interval1", "index", 7], 0, "buckets/stage2"),
    ],
)
def test_one_text_or_decision_changed_fails(
    name: str, keys: list[str | int], value: object, failed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _copy(name, tmp_path / name)
    _change(path, keys, value)
    assert main([str(path)]) == 1
    report = _report(capsys)
    assert report["failed"] == [f"outputs.json/{failed}"]
    row = report["tensors"][f"outputs.json/{failed}"]
    assert row["differing"] >= 1
    assert "recorded" in row["problem"]


def test_tables_recorded_but_not_computed_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _copy("08e_sincos_v1_0", tmp_path / "case")
    (path / "outputs.json").write_text(json.dumps({"something": [1]}))
    assert main([str(path)]) == 1
    assert _report(capsys)["failed"] == ["outputs.json/something"]


def test_errors_match_whatever_their_name() -> None:
    rows = compare_tables({"a": {"error": "ours"}, "b": 1}, {"a": {"error": "KeyError"}, "b": {"error": "x"}}, {})
    assert [rows[key]["ok"] for key in ("outputs.json/a", "outputs.json/b")] == [True, False]
    assert not compare_tables({"a": [1]}, {"a": [1, 2]}, {})["outputs.json/a"]["ok"]
    assert not compare_tables({"a": {"x": 1, "y": 2}}, {"a": {"x": 1}}, {})["outputs.json/a"]["ok"]


def test_slack_lets_only_undetermined_entries_move(tmp_path: Path) -> None:
    settings = OptimizerConfig(lr=1e-3, eps=1e-8)
    slack = gradient_slack([np.array([1.0, 1e-9, 0.3], np.float32)] * 3, settings)
    assert slack[0] < 1e-9
    assert slack[1] > 1e-4
    recorded = {"plain/final/a": np.zeros(3, np.float32)}
    bounds = Tolerances("trace", tmp_path / "case", None)
    moved = {"plain/final/a": np.array([0.0, 1e-4, 0.0], np.float32)}
    row = compare(moved, recorded, bounds, {"plain/final/a": slack})["plain/final/a"]
    assert (row["ok"], row["undetermined"]) == (True, 1)
    moved["plain/final/a"][2] = 1e-4
    assert not compare(moved, recorded, bounds, {"plain/final/a": slack})["plain/final/a"]["ok"]

"""``ostrain eval vae`` and its task: measures by clip, shared by ranks, results as files; bad input."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from models.config import AutoencoderConfig
from models.config.eval_vae import EvalVaeConfig
from models.events import Log, Reporter
from models.exits import BAD_CHECKPOINT, BAD_DATA, PayloadError
from models.parallel.world import World
from models.task import Task
from models.vae import build_network
from models.vae.evaluate import Evaluator, read_clip
from models.weights import state_dict
from ostrain.cli import cli
from tests.models.clips import make_clip
from tests.models.vae_runs import AUTOENCODER, RANDOM, clips, config, trained

pytestmark = pytest.mark.train


def evaluated(folder: Path, **values: object) -> dict[str, object]:
    """Results of an evaluation in this process."""
    (folder / "heartbeat").mkdir(parents=True, exist_ok=True)
    task = Task(folder, World(), Reporter(folder, 0), Log(io.StringIO()))
    Evaluator(EvalVaeConfig.model_validate(values), task).run()
    return json.loads((folder / "eval" / "results.json").read_text())


def test_what_changes_nothing_is_perfect(tmp_path: Path) -> None:
    data = {"videos": str(clips()), "image_size": [16, 16], "num_frames": 3}
    results = evaluated(tmp_path, autoencoder={"type": "identity"}, data=data, perceptual=RANDOM)
    assert results["mean"] == {"psnr": 100.0, "ssim": 1.0, "lpips": 0.0}
    assert [clip["clip"] for clip in results["clips"]] == ["clip0.mp4", "clip1.mp4", "clip2.mp4"]


def test_a_checkpoint_is_measured_on_clips_pictures_and_a_broken_file(tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained(run, config("stage1", steps=1, ema_decay=0.5, adversarial=None))
    videos = tmp_path / "videos"
    make_clip(videos / "below" / "a.mp4", 6, size=(24, 32))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (17, 21, 3), np.uint8)).save(videos / "b.png")
    (videos / "c.mp4").write_bytes(b"no clip")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(videos / "d.png")
    (videos / "notes.txt").write_text("not a clip")
    results = evaluated(tmp_path, weights=str(run), data={"videos": str(videos)}, save=True, sample=True)
    clips_ = {clip["clip"]: clip for clip in results["clips"]}
    assert list(clips_) == ["b.png", "below/a.mp4", "c.mp4", "d.png"]
    # Frames keep their size, cut to whole latents.
    sizes = {name: (clip["frames"], clip["height"], clip["width"]) for name, clip in clips_.items()}
    assert sizes["below/a.mp4"] == (6, 24, 32) and sizes["b.png"] == (1, 16, 20)
    assert "Invalid data" in clips_["c.mp4"]["problem"] and "smaller than SSIM's window" in clips_["d.png"]["problem"]
    used = [clip["psnr"] for clip in results["clips"] if clip["psnr"] is not None]
    assert len(used) == 2 and results["mean"]["psnr"] == pytest.approx(np.mean(used))
    assert 0 < results["mean"]["psnr"] < 40 and results["mean"]["lpips"] is None
    with av.open(str(tmp_path / clips_["below/a.mp4"]["saved"])) as pair:
        frames = [frame.to_ndarray(format="rgb24") for frame in pair.decode(video=0)]
    assert len(frames) == 6 and frames[0].shape == (24, 64, 3)
    assert (tmp_path / "eval" / "pairs" / "b.png").exists()
    with (tmp_path / "eval" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["clip"] for row in rows] == list(clips_) and float(rows[0]["psnr"]) == clips_["b.png"]["psnr"]
    other = evaluated(
        tmp_path / "raw", weights=str(run), data={"videos": str(videos / "b.png")}, ema=False, sample=True
    )
    assert other["clips"][0]["psnr"] != clips_["b.png"]["psnr"]  # the weights, not their averages


def test_original_pixels_come_back_unchanged(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    pixels, _ = read_clip(EvalVaeConfig(), tmp_path / "a.png", (1, 8, 8))
    assert pixels.shape == (3, 1, 16, 16)
    assert np.allclose((pixels[:, 0].transpose(1, 2, 0) + 1) * 127.5, picture, atol=1e-4)


def test_bad_input_is_named(tmp_path: Path) -> None:
    identity = {"type": "identity"}
    with pytest.raises(PayloadError, match="there are no clips to measure") as caught:
        evaluated(tmp_path, autoencoder=identity, data={"videos": "nowhere"})
    assert caught.value.exit_code == BAD_DATA and caught.value.why == "the folder does not exist"
    (tmp_path / "bad.mp4").write_bytes(b"no clip")
    with pytest.raises(PayloadError, match="none of the 1 clips can be used") as caught:
        evaluated(tmp_path, autoencoder=identity, data={"videos": "bad.mp4"})
    assert "bad.mp4: Invalid data" in caught.value.why
    with pytest.raises(PayloadError, match="weights do not exist") as caught:
        evaluated(tmp_path, weights="gone", data={"videos": str(clips())})
    assert (caught.value.exit_code, caught.value.next_step) == (BAD_CHECKPOINT, "correct weights")
    network = build_network(AutoencoderConfig.model_validate(AUTOENCODER), seed=0)
    state = state_dict(network)
    state.pop("temporal_vae.quant_conv.conv.weight")
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(PayloadError, match="weights do not fit the autoencoder: 1 differences"):
        evaluated(tmp_path, autoencoder=AUTOENCODER, weights="part.safetensors", data={"videos": str(clips())})


def test_the_command_measures_and_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["eval", "vae", str(clips() / "videos.csv"), "--frames", "2", "--size", "16x16", "-o", "out"]
    arguments += ["--set", "autoencoder.type=identity", "--set", "limit=2", "--json"]
    assert cli.main(arguments, standalone_mode=False) == 0
    results = json.loads(capsys.readouterr().out)
    assert len(results["clips"]) == 2 and results["mean"]["psnr"] == 100.0
    assert (tmp_path / "out" / "results.csv").exists()

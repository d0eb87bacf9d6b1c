"""The sampling task from its configuration to its files: stages, restarts, weights, loops, ranks that share a video."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from models.exits import BAD_CHECKPOINT, BAD_CONFIG, BAD_DATA, PayloadError
from models.sampling.latents import read_latents
from tests.models.clips import make_clip, write_embedding
from tests.models.runs import environment
from tests.models.samplers import IDDPM, MODEL, frames, make_run, records, run, sample, weights

PNG = {"output": {"format": "png"}}
VAE: dict[str, Any] = {
    "type": "OpenSoraVAE_V1_2",
    "pretrained": "vae.safetensors",
    "micro_frame_size": 5,
    "spatial": {"block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4},
    "temporal": {"filters": 4, "num_res_blocks": 1, "channel_multipliers": [1, 1, 1],
                 "temporal_downsample": [True, True], "num_groups": 2},
}  # fmt: skip


def refused(folder: Path, **over: Any) -> PayloadError:
    with pytest.raises(PayloadError) as caught:
        sample(folder, **over)
    assert caught.value.where and caught.value.what
    return caught.value


def test_from_prompts_to_files(tmp_path: Path) -> None:
    said = sample(tmp_path, prompts=["a red ball", "a box that is too long for this small encoder"], batch_size=2)
    first, second = records(tmp_path)
    assert first["prompt"] == "a red ball" and first["path"] == str(tmp_path / "samples" / "sample_0000.mp4")
    facts = {"seed": 42, "sample": 0, "index": 1, "frames": 4, "height": 8, "width": 12, "fps": 24.0, "steps": 2}
    assert facts.items() <= second.items() and second["seconds"] > 0
    assert sorted(file.name for file in (tmp_path / "samples").iterdir()) == ["sample_0000.mp4", "sample_0001.mp4"]
    assert "prompt cut: " in said and "tokens, the text encoder takes 6: 'a box that is too long" in said
    steps = [json.loads(line) for line in (tmp_path / "metrics" / "rank-0.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2, 3, 4] and {step["steps"] for step in steps} == {4}
    heartbeat = json.loads((tmp_path / "heartbeat" / "rank-0").read_text())
    assert (heartbeat["step"], heartbeat["phase"]) == (4, "done")
    events = [json.loads(line)["event"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert events == ["sample_started", "sample_written", "sample_written", "sample_finished"]


def test_three_stages_give_what_one_gives(tmp_path: Path) -> None:
    plan: dict[str, Any] = {
        "prompts": ["|0|a red ball|1|a blue box", "a cat"], "negative_prompt": "ugly", "loop": 2,
        "condition_frame_length": 1, **PNG,
    }  # fmt: skip
    sample(tmp_path / "one", **plan)
    three = tmp_path / "three"
    for stage, taken in (("text", ("weights",)), ("latents", ("text",)), ("decode", ("model", "weights", "text"))):
        make_run(three, **plan)
        run(make_run(three, **{**plan, **dict.fromkeys(taken), "stage": stage}))
    folders = [folder / "samples" for folder in (tmp_path / "one", three)]
    for name in ("sample_0000", "sample_0001"):
        one, other = (frames(folder / name) for folder in folders)
        assert one.shape == (7, 8, 12, 3) and np.array_equal(one, other)
    with np.load(three / "samples" / "text" / "sample_0000.npz") as arrays:
        assert arrays["text_emb"].shape == (3, 6, 8) and arrays["loops"].tolist() == [0, 1] and arrays["negative"] == 2
    keys = [[record["key"] for record in records(folder)] for folder in (tmp_path / "one", three)]
    assert len(keys[1]) == 6
    # Other prompts do not pass for those that were embedded.
    other = {**plan, "stage": "latents", "output": {"existing": "overwrite"}}
    assert refused(three, **{**other, "prompts": ["x"]}).what == "the text stage embedded other prompts"
    (three / "samples" / "text" / "sample_0000.npz").unlink()
    assert refused(three, **other).what == "the text stage has not embedded this prompt"


def test_interrupted_runs_go_on_and_strangers_stay(tmp_path: Path) -> None:
    plan: dict[str, Any] = {"prompts": ["a", "b", "c"], **PNG}
    sample(tmp_path, **plan)
    kept = frames(tmp_path / "samples" / "sample_0002")
    shutil.rmtree(tmp_path / "samples" / "sample_0001")
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write('{"path": "cut sho')
    assert "1 of 3 results to make" in sample(tmp_path, **plan)
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 5
    assert (tmp_path / "samples" / "sample_0001").is_dir()
    # Another seed makes other results, whose names are taken.
    error = refused(tmp_path, seed=1, **plan)
    assert error.what == "results are there already" and "sample_0000" in error.why and error.exit_code == BAD_CONFIG
    skip = {"format": "png", "existing": "skip"}
    assert "0 of 3 results" in sample(tmp_path, seed=1, prompts=plan["prompts"], output=skip)
    assert np.array_equal(frames(tmp_path / "samples" / "sample_0002"), kept)
    overwrite = {"format": "png", "existing": "overwrite"}
    sample(tmp_path, seed=1, prompts=plan["prompts"], output=overwrite)
    assert not np.array_equal(frames(tmp_path / "samples" / "sample_0002"), kept)


def test_images_and_conditioned_clips(tmp_path: Path) -> None:
    sample(tmp_path, num_frames=1, output={"name": "image"})
    assert frames(tmp_path / "samples" / "image_0000.png").shape == (1, 8, 12, 3)
    pixels = np.random.default_rng(0).integers(0, 255, (8, 12, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    make_clip(tmp_path / "b.mp4", 3, size=(48, 64))
    sample(tmp_path, reference_path="a.png;b.mp4", mask_strategy="0;0,1,-2,-2,2", **PNG)
    found = frames(tmp_path / "samples" / "sample_0000")
    assert np.array_equal(found[0], pixels) and records(tmp_path)[-1]["mask_strategy"] == "0;0,1,-2,-2,2"
    error = refused(tmp_path, reference_path="gone.png", output={"dir": "other"})
    assert error.exit_code == BAD_DATA and error.what == "a reference does not exist"


def with_autoencoder(folder: Path) -> dict[str, Any]:
    """Weights of a small autoencoder of 1.2 and a picture beside them; settings of a sample that uses both.

    Two clips of 10 frames in chunks of 5; the second one starts with the last chunk of the first.
    """
    from models.config import AutoencoderConfig
    from models.vae import build_network
    from models.weights import state_dict

    folder.mkdir(exist_ok=True)
    save_file(state_dict(build_network(AutoencoderConfig(**VAE), seed=1)), folder / "vae.safetensors")
    pixels = np.random.default_rng(0).integers(0, 255, (20, 20, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    return {
        "autoencoder": VAE, "model": MODEL | {"in_channels": 4, "patch_size": [1, 2, 2]}, "num_frames": 10, "loop": 2,
        "condition_frame_length": 2, "reference_path": "a.png", "num_sampling_steps": 1, **PNG,
    }  # fmt: skip


def test_through_the_autoencoder_of_1_2(tmp_path: Path) -> None:
    sample(tmp_path, **with_autoencoder(tmp_path))
    found = frames(tmp_path / "samples" / "sample_0000")
    assert found.shape == (15, 8, 12, 3) and records(tmp_path)[0]["frames"] == 15


def checkpoint(folder: Path, averaged: bool) -> None:
    """A checkpoint of step 2 whose averages are the weights of :func:`weights`, and whose weights are half of them."""
    from models.checkpoint.pieces import Piece
    from models.checkpoint.saver import Saver
    from models.config import CheckpointConfig
    from models.parallel.world import World

    def piece(kind: str, name: str, value: np.ndarray) -> Piece:
        return Piece(kind, name, value.shape, 0, value.size, lambda: value.reshape(-1))

    made = weights(MODEL)
    pieces = [piece("model", name, value / 2) for name, value in made.items()]
    # Frozen parameters have no averages.
    frozen = "y_embedder.y_embedding"
    pieces += [piece("ema", name, value) for name, value in made.items() if averaged and name != frozen]
    told = {"model": MODEL, "autoencoder": {"type": "identity"}, "data": {"image_size": [8, 12], "num_frames": 4}}
    saver = Saver(folder / "checkpoints", World(), "here", CheckpointConfig())
    saver.begin(2, pieces, {"step": 2, "config": told})
    saver.drain()


def test_weights_of_a_run(tmp_path: Path) -> None:
    plan: dict[str, Any] = {"model": None, "autoencoder": None, "image_size": None, "num_frames": None, **PNG}
    found = {}
    for name, averaged, use_ema in (("ema", True, True), ("raw", True, False), ("none", False, True)):
        checkpoint(tmp_path / name, averaged)
        said = sample(tmp_path / name, weights=".", use_ema=use_ema, **plan)
        what = "moving averages" if name == "ema" else "weights"
        assert f"INFO {what} of {tmp_path / name / 'checkpoints' / 'step-2'}" in said
        found[name] = frames(tmp_path / name / "samples" / "sample_0000")
    assert np.array_equal(found["raw"], found["none"]) and not np.array_equal(found["raw"], found["ema"])
    shard = next((tmp_path / "ema" / "checkpoints" / "step-2").glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-9] + bytes(9))
    error = refused(tmp_path / "ema", weights=".", seed=1, **{**plan, "output": {"dir": "other"}})
    assert error.exit_code == BAD_CHECKPOINT and shard.name in error.why


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    other = make_run(tmp_path / "c")
    whole = load_file(other / "model.safetensors")
    save_file({name: value for name, value in whole.items() if "cross_attn" not in name}, other / "model.safetensors")
    error = refused(other)
    assert error.exit_code == BAD_CHECKPOINT and "missing: spatial_blocks.0.cross_attn" in error.why
    (other / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes()[:5000])
    assert refused(other).what == "weights cannot be read"
    assert "does not fit the model" in refused(other, text={"type": "hashed", "channels": 16}).what


def test_a_size_the_network_was_not_made_for(tmp_path: Path) -> None:
    model = MODEL | IDDPM | {"type": "STDiT", "qk_norm": False}
    plan: dict[str, Any] = {"model": model, "diffusion": {"type": "iddpm"}, **PNG}
    tables = {"pos_embed": np.zeros((1, 6, 24), np.float32), "pos_embed_temporal": np.zeros((1, 4, 24), np.float32)}
    make_run(tmp_path, **plan)
    save_file(weights(model) | tables, tmp_path / "model.safetensors")
    sample(tmp_path, **plan)
    plan["output"] = {"dir": "other"}
    error = refused(tmp_path, image_size=[8, 16], **plan)
    assert error.what == "STDiT was made for frames of another size"
    assert "its weights have 6 patches a frame, these samples 8" in error.why
    assert "size does not fit the model" in refused(tmp_path, image_size=[9, 12], **plan).what
    assert "positions in time are those of 6 frames; the weights are of 4" in sample(tmp_path, num_frames=6, **plan)
    assert frames(tmp_path / "samples" / "sample_0000").shape == (4, 8, 12, 3)


def test_embeddings_instead_of_an_encoder(tmp_path: Path) -> None:
    write_embedding(tmp_path / "e" / "ball.npz", "a red ball", 9, 8)
    sample(tmp_path, prompts=None, text=None, text_embeddings="e", **PNG)
    assert records(tmp_path)[0]["prompt"] == "ball" and (tmp_path / "samples" / "ball").is_dir()
    assert "needs the text encoder" in refused(
        tmp_path, prompts=None, text=None, text_embeddings="e", negative_prompt="x", output={"dir": "other"}
    ).what  # fmt: skip
    write_embedding(tmp_path / "e" / "box.npz", "a box", 9, 5)
    assert "caption_channels want" in refused(tmp_path, prompts=None, text=None, text_embeddings="e").why


def start_two(folder: Path, *runs: Path) -> None:
    """Two real ranks under msrun, which sample in all ``runs``, to their end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["msrun", "--worker_num=2", "--local_worker_num=2", f"--master_port={port}", "--join=True"]
    command += [f"--log_dir={folder}/logs", "python", "-m", "tests.models.sample_worker", *map(str, runs)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=log, stderr=subprocess.STDOUT)
        try:
            code = process.wait(120)
        finally:
            if process.poll() is None:
                process.send_signal(2)  # msrun ends its workers on SIGINT only
                process.wait(60)
    assert code == 0, "\n".join(file.read_text()[-2000:] for file in folder.glob("logs/*.log"))


def test_two_ranks(tmp_path: Path) -> None:
    """A video shared in either way, and prompts shared out. Sizes divide by nothing; the second clip goes on."""
    plan: dict[str, Any] = {
        "prompts": ["a red ball", "a cat"], "image_size": [12, 20], "num_frames": 5, "loop": 2,
        "condition_frame_length": 2, "stage": "latents", "text": None, "text_embeddings": "../e",
    }  # fmt: skip
    for name in "ab":
        write_embedding(tmp_path / "e" / f"{name}.npz", name, 6, 8)
    layouts: dict[str, dict[str, Any]] = {
        "alone": {}, "ulysses": {"sp": 2}, "dsp": {"sp": 2, "sp_kind": "dsp"}, "prompts": {}
    }  # fmt: skip
    runs = {name: make_run(tmp_path / name, **plan, layout=layout) for name, layout in layouts.items()}
    for name, layout in (("pixels", {}), ("shared pixels", {"sp": 2})):
        runs[name] = make_run(tmp_path / name, **with_autoencoder(tmp_path / name), layout=layout)
    run(runs["alone"])
    run(runs["pixels"])
    start_two(tmp_path, runs["ulysses"], runs["dsp"], runs["prompts"], runs["shared pixels"])
    one, two = (frames(runs[name] / "samples" / "sample_0000").astype(int) for name in ("pixels", "shared pixels"))
    assert one.shape == (15, 8, 12, 3) and np.abs(one - two).max() <= 1  # a value may be rounded the other way
    for name in ("ulysses", "dsp", "prompts"):
        for file in ("sample_0000.npz", "sample_0001.npz"):
            one, two = (
                read_latents(folder, folder / "samples" / "latents" / file).latents
                for folder in (runs["alone"], runs[name])
            )
            assert one.shape == (2, 3, 5, 12, 20) and np.abs(one - two).max() < 1e-4, (name, file)
    assert {record["rank"] for record in records(runs["dsp"])} == {0}
    assert sorted(record["rank"] for record in records(runs["prompts"])) == [0, 1]
    assert (runs["dsp"] / "metrics" / "rank-1.jsonl").exists()

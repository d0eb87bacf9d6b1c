"""Training from end to end with MindSpore: alone and with two workers, interrupted, resumed, and made to fail."""

from __future__ import annotations

import re
import resource
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.models import runs
from tests.models.clips import damage, make_clip

pytestmark = pytest.mark.train


def test_killed_and_resumed_equals_never_interrupted(tmp_path: Path) -> None:
    plan: dict[str, Any] = {"steps": 30, "checkpoint": {"every": 4, "keep_last": 2}, "log": {"tensorboard": True}}
    straight = runs.make_run(tmp_path / "straight", **plan)
    assert runs.train(straight) == 0, runs.output(straight)

    broken = runs.make_run(tmp_path / "broken", **plan)
    process = runs.start(broken)
    deadline = time.monotonic() + 120
    while len(runs.losses(broken)) < 9 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL, runs.output(broken)
    assert 9 <= len(runs.losses(broken)) < 30
    assert runs.train(broken) == 0, runs.output(broken)

    assert runs.losses(broken) == runs.losses(straight)
    assert len(runs.losses(straight)) == 30
    shard = "checkpoints/step-30/shard-00000-of-00001.safetensors"
    assert (broken / shard).read_bytes() == (straight / shard).read_bytes()
    resumed = runs.events(broken, "resumed")
    # A checkpoint is committed a few steps after it was begun: that of step 8 may not have been, that of step 4 was.
    assert len(resumed) == 1 and resumed[0]["step"] % 4 == 0 and resumed[0]["step"] >= 4
    check_traces(straight)


def check_traces(folder: Path) -> None:
    """What a whole run leaves behind."""
    assert [event["step"] for event in runs.events(folder, "checkpoint_saved")] == [4, 8, 12, 16, 20, 24, 28, 30]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-28", "step-30"]
    assert len(runs.events(folder, "train_started")) == len(runs.events(folder, "train_finished")) == 1
    assert list((folder / "tensorboard").glob("events.*"))
    assert not list(folder.glob("*/.*"))
    heartbeat = runs.lines(folder / "heartbeat" / "rank-0")
    assert heartbeat[0]["step"] == 30 and heartbeat[0]["phase"] == "done"
    entry = runs.lines(folder / "metrics" / "rank-0.jsonl")[-1]
    assert entry["samples"] == 2 and entry["shape"] == "4x16x24" and entry["lr"] == 1e-3
    assert entry["tokens_per_s"] == pytest.approx(2 * 4 * 4 * 6 / entry["seconds"])
    assert entry["memory"] > 100 << 20
    log = (folder / "log").read_text().splitlines()
    steps = [line for line in log if " INFO step " in line]
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO step 1/30 loss \d", steps[0])
    assert len([line for line in log if "has no bf16 kernels" in line]) == 1


def test_two_workers_equal_one_process_and_resume_bit_for_bit(tmp_path: Path) -> None:
    # With a usual epsilon Adam turns rounding noise in tiny gradients into whole steps.
    plan: dict[str, Any] = {"steps": 8, "jit": "off", "optimizer": {"eps": 1e-4}}
    one = runs.make_run(tmp_path / "one", batch_size=4, **plan)
    assert runs.train(one) == 0, runs.output(one)
    two = runs.make_run(tmp_path / "two", batch_size=1, gradient_accumulation_steps=2, checkpoint={"every": 5}, **plan)
    assert runs.msrun(two, 2) == 0, runs.output(two)
    alone, together = runs.losses(one), runs.losses(two)
    assert runs.losses(two, rank=1) == together
    for step in range(1, 9):
        assert together[step] == pytest.approx(alone[step], rel=2e-6), step

    again = tmp_path / "again"
    shutil.copytree(two / "clips", again / "clips")
    shutil.copytree(two / "checkpoints" / "step-5", again / "checkpoints" / "step-5")
    shutil.copy(two / "train.yaml", again)
    assert runs.msrun(again, 2) == 0, runs.output(again)
    assert runs.losses(again) == {step: together[step] for step in (6, 7, 8)}
    for rank in range(2):
        file = f"checkpoints/step-8/shard-0000{rank}-of-00002.safetensors"
        assert (again / file).read_bytes() == (two / file).read_bytes()


def test_buckets_masks_and_a_damaged_clip(tmp_path: Path) -> None:
    folder = runs.make_run(
        tmp_path / "run",
        steps=6,
        jit="off",
        data={"image_size": None, "bucket_config": {"144p": {8: [1.0, 1]}}},
        model={"patch_size": [1, 16, 16]},
        mask_ratios={"random": 0.7},
    )
    for number in range(4):
        make_clip(folder / "clips" / f"clip{number}.mp4", 12, size=(144, 256) if number else (256, 144), seed=number)
    damage(folder / "clips" / "clip1.mp4")
    (folder / "clips" / "clip2.mp4").unlink()
    assert runs.train(folder) == 0, runs.output(folder)
    metrics = runs.lines(folder / "metrics" / "rank-0.jsonl")
    assert {entry["shape"] for entry in metrics} == {"8x144x256", "8x256x144"}
    # A step whose only clip failed trains on nothing and says so.
    failed = [entry for entry in metrics if entry["loss"] is None]
    assert failed and metrics[-1]["skipped"] == metrics[-1]["dropped"] == len(failed)
    skipped = runs.events(folder, "clip_skipped")
    assert [Path(event["path"]).name for event in skipped] == ["clip2.mp4", "clip1.mp4"]
    log = (folder / "log").read_text()
    assert log.count("clip skipped: ") == 2 and "1 of 4 clips are skipped" in log


def test_bad_data_ends_with_its_code_and_a_fault_file(tmp_path: Path) -> None:
    folder = runs.make_run(tmp_path / "run")
    (folder / "clips" / "text" / "clip2.npz").unlink()
    assert runs.train(folder) == 65, runs.output(folder)
    fault = runs.fault(folder)
    assert fault["kind"] == "bad_data"
    assert fault["what"] == "text embeddings are missing for 1 of 4 clips"
    assert "clip2.mp4 (line 4)" in fault["why"]
    assert fault["where"].endswith("train.csv:4")
    assert fault["next"] and fault["time"] and fault["step"] == 0 and "Traceback" in fault["traceback"]
    log = (folder / "log").read_text()
    assert "ERROR error: text embeddings are missing" in log and "ERROR   next: " in log
    assert "Traceback" not in log


def test_full_disk_at_a_checkpoint(tmp_path: Path) -> None:
    folder = runs.make_run(tmp_path / "run", jit="off", steps=6, checkpoint={"every": 2, "background": False})
    limit = 40_000

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    assert runs.train(folder, preexec_fn=small_files) == 67, runs.output(folder)
    fault = runs.fault(folder)
    assert fault["kind"] == "disk_full" and fault["step"] == 2
    assert list((folder / "checkpoints").iterdir()) == []
    assert len(runs.losses(folder)) == 2
    # With room again the same run directory goes on to its end.
    assert runs.train(folder) == 0, runs.output(folder)
    assert (folder / "checkpoints" / "step-6" / "manifest.json").exists()


def test_not_finite_ends_after_ten_dropped_steps(tmp_path: Path) -> None:
    folder = runs.make_run(tmp_path / "run", jit="off", steps=40, optimizer={"lr": 1e38, "max_grad_norm": None})
    assert runs.train(folder) == 68, runs.output(folder)
    assert runs.fault(folder)["kind"] == "not_finite"
    metrics = runs.lines(folder / "metrics" / "rank-0.jsonl")
    assert metrics[-1]["loss"] is None or metrics[-1]["grad_norm"] is None
    assert (folder / "log").read_text().count("dropped: loss") == 10


def test_sigterm_ends_a_worker_at_once(tmp_path: Path) -> None:
    folder = runs.make_run(tmp_path / "run", jit="off", steps=100_000)
    process = runs.start(folder)
    deadline = time.monotonic() + 120
    while not runs.losses(folder) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == -signal.SIGTERM, runs.output(folder)
    assert not (folder / "faults").exists()

"""Two workers on this machine, from submit to rm, through kills and bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import QUICKSTART, Cli, losses, processes_of, run_dir, step_of, worker_pid

pytestmark = pytest.mark.train


STEPS = ("train.steps=30", "train.checkpoint.every=5", "train.ema_decay=0.99")
# step -> (loss, gradient norm) of the undisturbed run below, for the runs that are killed.
reference: dict[int, tuple[float, float]] = {}


def test_from_submit_to_rm(cli: Cli) -> None:
    settings = [word for one in _small(*STEPS) for word in ("--set", one)]
    done = cli("submit", str(QUICKSTART), "--follow", "--report", "report", *settings)
    run = done.stdout.splitlines()[0]
    assert "last loss (mean of 10 steps)" in done.stdout
    assert (cli.folder / "report" / "loss.png").read_bytes().startswith(b"\x89PNG")
    told = cli.status(run)
    assert (told["state"], told["reason"], told["progress"]["step"]) == ("SUCCEEDED", "done", 30)
    assert told["checkpoint"] == 30
    reference.update(losses(run_dir(cli, run)))
    lines = cli("logs", run).stdout.splitlines()
    assert {line.split(" | ")[0] for line in lines} == {"local/0", "local/1"}
    assert all(line.startswith("local/1") for line in cli("logs", run, "--rank", "1").stdout.splitlines())
    [row] = json.loads(cli("ps", "--json").stdout)
    assert (row["run_id"], row["state"]) == (run, "SUCCEEDED")
    assert "nobody is here to confirm" in cli("rm", run, code=2).stderr
    cli("rm", "--yes", run)
    assert not run_dir(cli, run).exists()
    assert "no run" in cli("status", run, code=2).stderr


def test_killed_worker_is_named_and_resume_is_bitwise(cli: Cli) -> None:
    assert reference, "the test before this one gives the losses to compare with"
    run = cli.submit(*STEPS)
    told = cli.wait(run, lambda told: step_of(told) >= 12)
    os.kill(worker_pid(told, 1), signal.SIGKILL)
    killed = time.monotonic()
    told = cli.wait(run, lambda told: told["state"] == "FAILED", timeout=15)
    assert time.monotonic() - killed < 15
    assert (told["reason"], told["attempt"]) == ("worker_killed", 1)
    assert (told["fault"]["node"], told["fault"]["rank"], told["fault"]["signal"]) == ("local", 1, "SIGKILL")
    text = cli("status", run, code=1).stdout
    assert "node local rank 1 was killed by SIGKILL (attempt 1)" in text
    cli.wait(run, lambda told: told["settled"], timeout=30)
    assert processes_of(run) == []
    at_checkpoint = cli.status(run)["checkpoint"]
    cli("resume", run, "--follow")
    assert cli.status(run)["attempt"] == 2
    assert losses(run_dir(cli, run)) == reference
    records = (run_dir(cli, run) / "metrics" / "rank-0.jsonl").read_text().splitlines()
    second = [json.loads(line)["step"] for line in records if json.loads(line)["attempt"] == 2]
    # A checkpoint that was on disk but not yet published when the worker died counts, too.
    assert second[0] - 1 in (at_checkpoint, at_checkpoint + 5), "it went on from the newest checkpoint"


def test_agent_or_launcher_killed_leaves_nothing_and_resumes(cli: Cli) -> None:
    run = cli.submit("train.steps=30", "train.checkpoint.every=5")
    told = cli.wait(run, lambda told: step_of(told) >= 6)
    os.kill(told["nodes"]["local"]["agent"]["pid"], signal.SIGKILL)
    told = cli.wait(run, lambda told: told["state"] == "FAILED", timeout=15)
    assert told["reason"] == "agent_lost"
    end = time.monotonic() + 15
    while _workers(run) and time.monotonic() < end:
        time.sleep(0.2)
    assert not _workers(run), "workers die with their agent"
    cli("resume", run)
    told = cli.wait(run, lambda told: any(one["rank"] == 1 for one in told["nodes"]["local"]["workers"]))
    state = json.loads((run_dir(cli, run) / "agent" / "state.json").read_text())
    os.kill(state["launcher"]["pid"], signal.SIGKILL)
    told = cli.wait(run, lambda told: told["state"] == "FAILED", timeout=15)
    assert (told["reason"], told["attempt"]) == ("launcher_killed", 2)
    assert not _workers(run)
    cli("resume", run, "--follow")
    assert cli.status(run)["state"] == "SUCCEEDED"


def _workers(run: str) -> list[int]:
    found = []
    for pid in processes_of(run):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"models.train" in command:
            found.append(pid)
    return found


def test_client_killed_at_any_moment_of_submit_leaves_a_run_that_can_be_told_and_ended(cli: Cli) -> None:
    words = [word for one in _small("train.steps=400") for word in ("--set", one)]
    for delay in (0.15, 0.35, 0.6, 0.9, 1.3):
        client = cli.start("submit", str(QUICKSTART), *words)
        time.sleep(delay)
        client.kill()
        client.communicate(timeout=20)
    for row in json.loads(cli("ps", "--json").stdout):
        assert row["state"] in ("RUNNING", "FAILED", "PREPARING")
        cli("cancel", row["run_id"])
        assert processes_of(row["run_id"]) == []
        cli("rm", "--yes", row["run_id"])
    assert json.loads(cli("ps", "--json").stdout) == []


def test_cancel_says_what_it_ended(cli: Cli) -> None:
    run = cli.submit("train.steps=2000")
    cli.wait(run, lambda told: len(told["nodes"]["local"]["workers"]) == 2)
    assert "is RUNNING" in cli("resume", run, code=2).stderr
    done = cli("cancel", run, "--grace", "2")
    assert " processes ended, 0 left" in done.stdout
    assert processes_of(run) == []
    told = cli.status(run)
    assert (told["state"], told["exit_code"]) == ("CANCELLED", 5)
    assert "no process of it was left" in cli("cancel", run).stdout


@pytest.fixture
def own_clips(cli: Cli) -> Path:
    """A copy of the quick start's job and clips that a test may damage."""
    shutil.copytree(QUICKSTART.parent / "quickstart", cli.folder / "quickstart")
    shutil.copy(QUICKSTART, cli.folder / "job.yaml")
    return cli.folder / "quickstart"


def _small(*settings: str) -> tuple[str, ...]:
    from tests.e2e.conftest import SMALL

    return (*SMALL, *settings)


def _follow(cli: Cli, code: int, *settings: str) -> str:
    words = [word for one in _small("train.steps=6", *settings) for word in ("--set", one)]
    done = cli("submit", str(cli.folder / "job.yaml"), "--follow", *words, code=code)
    return done.stdout + done.stderr


def test_a_missing_embedding_is_named(cli: Cli, own_clips: Path) -> None:
    gone = sorted((own_clips / "text").glob("**/*.npz"))[0]
    gone.unlink()
    text = _follow(cli, 1)
    assert "bad_data" in text
    assert gone.stem.split(".")[0] in text
    assert "next:" in text


def test_a_clip_that_does_not_decode_is_skipped_counted_and_named(cli: Cli, own_clips: Path) -> None:
    (own_clips / "bikes.mp4").write_bytes((own_clips / "bikes.mp4").read_bytes()[:2000])
    text = _follow(cli, 0)
    assert "clip skipped" in text
    assert "bikes.mp4" in text


def test_a_missing_source_is_told_before_anything_starts(cli: Cli, own_clips: Path) -> None:
    shutil.rmtree(own_clips)
    text = cli("submit", str(cli.folder / "job.yaml"), code=2).stderr
    assert "job.yaml:" in text
    assert json.loads(cli("ps", "--json").stdout) == []


def test_a_taken_port_is_told_before_anything_starts(cli: Cli) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        text = cli("submit", str(QUICKSTART), "--set", f"master_port={port}", code=3).stderr
    assert str(port) in text
    assert json.loads(cli("ps", "--json").stdout) == []


def test_a_python_without_mindspore_is_told_before_anything_starts(cli: Cli) -> None:
    import venv

    venv.create(cli.folder / "bare", with_pip=False)
    node = f"{{name: local, host: 127.0.0.1, devices: 2, python: '{cli.folder}/bare/bin/python'}}"
    text = f"name: bare\nbackend: local\nnodes:\n  - {node}\n"
    (cli.folder / "bare.yaml").write_text(text)
    told = cli("submit", str(QUICKSTART), "--set", f"cluster={cli.folder / 'bare.yaml'}", code=3).stderr
    assert "mindspore" in told
    assert json.loads(cli("ps", "--json").stdout) == []

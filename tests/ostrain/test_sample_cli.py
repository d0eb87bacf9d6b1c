"""``ostrain sample``: what it samples, its processes, its output."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml
from click.testing import CliRunner

from ostrain.cli.sample import _place
from ostrain.cli.sample import sample as command
from ostrain.errors import OstrainError, SpecError
from ostrain.local_task import LocalTask, Tail
from ostrain.sample_config import load_sample, override
from tests.models.samplers import make_run, settings

REPO = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_a_recipe_a_job_and_nothing(here: Path) -> None:
    (here / "s.yaml").write_text(yaml.safe_dump(settings()))
    config, values = load_sample("s.yaml", ["num_frames=2s", override("prompts", ["it's: a #1", "b"])])
    assert config.prompts == ("it's: a #1", "b") and config.frames == 51 and values["num_frames"] == "2s"
    published = ["prompts=[x]", "weights=w", "autoencoder.pretrained=v"]
    config, values = load_sample("opensora_v1_2/sample_t2v", published)
    assert (config.size, config.frames, config.num_sampling_steps, config.seed) == ((720, 1280), 102, 30, 42)
    assert values["recipe"] == "opensora_v1_2/sample_t2v" and config.autoencoder is not None
    assert config.autoencoder.micro_frame_size == 17
    config, _ = load_sample("os11_sample_t2v", [])
    assert (config.sampler, config.guidance_channels, config.save_fps) == ("ddpm", 3, 8.0)
    assert load_sample(None, published[:2])[0].weights == "w"


def test_problems_have_places(here: Path) -> None:
    (here / "s.yaml").write_text("weights: w\nprompts: [a]\nnum_frame: 4\neta: 2.0\nresolution: 720p\n")
    with pytest.raises(SpecError) as caught:
        load_sample("s.yaml", ["seed=-1"])
    told = str(caught.value)
    assert "s.yaml:3:1" in told and "num_frames" in told and "s.yaml:4:6" in told and "--set seed=-1" in told
    (here / "s.yaml").write_text("weights: w\nprompts: [a]\nresolution: 720p\n")
    with pytest.raises(SpecError, match=r"s.yaml:3:13: resolution: resolution needs aspect_ratio") as caught:
        load_sample("s.yaml", [])
    assert caught.value.what == "1 problem in what is to be sampled" and caught.value.exit_code == 2


def test_names_that_are_no_sampling() -> None:
    with pytest.raises(OstrainError, match="no configuration or recipe opensora_v1_2/sample_t2w") as caught:
        load_sample("opensora_v1_2/sample_t2w", [])
    assert "did you mean 'opensora_v1_2/sample_t2v'" in caught.value.what and caught.value.exit_code == 2
    with pytest.raises(OstrainError, match="samples nothing"):
        load_sample("os12_stage3", [])
    with pytest.raises(SpecError, match="is one for train, not for sample"):
        raise_text("opensora_v1_2/stage3")


def raise_text(name: str) -> None:
    """Its problems are lines of the text, not of the exception's arguments."""
    try:
        load_sample(name, [])
    except SpecError as error:
        raise SpecError([], what=str(error)) from None


def test_weights_may_be_a_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = SimpleNamespace(name="here", access={})
    plan = SimpleNamespace(backend="local", nodes=[node])

    class Runs:
        def find(self, word: str) -> SimpleNamespace:
            if word != "last":
                raise OstrainError("no such run")
            return SimpleNamespace(run_id="r-1", plan=plan)

    monkeypatch.setattr("ostrain.cli.sample.opened_store", lambda: contextlib.nullcontext(Runs()))
    monkeypatch.setattr("cluster.local_backend.local_root", lambda access: "/state")
    assert _place("last") == "/state/runs/r-1/here"
    assert _place("./last") == "./last" and _place("gone") == "gone"
    (here / "last").touch()
    assert _place("last") == "last"
    plan.backend = "ssh"
    (here / "last").unlink()
    with pytest.raises(OstrainError, match="checkpoints of r-1 are on its nodes"):
        _place("last")


def test_dry_run_starts_nothing(here: Path) -> None:
    (here / "s.yaml").write_text(yaml.safe_dump(settings()))
    result = CliRunner().invoke(command, ["s.yaml", "--dry-run"])
    assert result.exit_code == 0 and not (here / "samples").exists()


class Fake(LocalTask):
    """A task whose process is a Python text."""

    text = ""

    def _command(self) -> list[str]:
        return [sys.executable, "-c", self.text]


def started(run_dir: Path, text: str) -> LocalTask:
    task = Fake("sample", {"a": 1}, run_dir)
    task.text = text
    return task


def test_every_process_ends_with_the_command(here: Path) -> None:
    text = "import subprocess,sys,pathlib;p=subprocess.Popen([sys.executable,'-c','import time;time.sleep(60)']);"
    text += "pathlib.Path('pid').write_text(str(p.pid));p.wait()"
    with started(here / "run", text) as task:
        for _ in task.wait():
            if (here / "run" / "pid").exists() and (here / "run" / "pid").read_text():
                break
        child = psutil.Process(int((here / "run" / "pid").read_text()))
        began = time.monotonic()
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert time.monotonic() - began < 8


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_goes_on_alone(here: Path, number: int) -> None:
    child_text = "import os,time;open('pid','w').write(str(os.getpid()));time.sleep(60)"
    text = "from pathlib import Path\nfrom tests.ostrain.test_sample_cli import started\n"
    text += f"with started(Path('run').absolute(), {child_text!r}) as task:\n    list(task.wait())\n"
    parent = subprocess.Popen([sys.executable, "-c", text], env={**os.environ, "PYTHONPATH": str(REPO)})
    pid, deadline = here / "run" / "pid", time.monotonic() + 30
    while not (pid.exists() and pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    child = psutil.Process(int(pid.read_text()))
    parent.send_signal(number)
    parent.wait(20)
    gone, alive = psutil.wait_procs([child], 10)
    assert gone and not alive


def test_a_fault_is_told(here: Path) -> None:
    fault = {"what": "w", "where": "x", "why": "y", "next": "n", "time": 2.0}
    (here / "run" / "faults" / "attempt-1").mkdir(parents=True)
    (here / "run" / "faults" / "attempt-1" / "rank-0.json").write_text(json.dumps({**fault, "what": "old"}))
    (here / "run" / "logs" / "attempt-1").mkdir(parents=True)
    text = "import pathlib,os;p=pathlib.Path('faults/attempt-'+os.environ['OSTRAIN_ATTEMPT']);p.mkdir(parents=True);"
    for rank, time_ in ((0, 9.0), (1, 2.0)):
        text += f"(p/'rank-{rank}.json').write_text({json.dumps({**fault, 'what': f'r{rank}', 'time': time_})!r});"
    with started(here / "run", text + "raise SystemExit(64)") as task:
        list(task.wait())
    with pytest.raises(OstrainError) as caught:
        task.check()
    assert (caught.value.what, caught.value.next_step, caught.value.exit_code) == ("r1", "n", 1)
    with started(here / "other", "print('last words'); raise SystemExit(3)") as task:
        list(task.wait())
    with pytest.raises(OstrainError, match="sample ended with code 3") as caught:
        task.check()
    assert caught.value.why == "last words"


def test_a_folder_that_cannot_be_written(here: Path) -> None:
    (here / "file").touch()
    with pytest.raises(OstrainError, match="cannot be written"):
        LocalTask("sample", {}, here / "file" / "run")


def test_only_new_whole_lines_are_followed(here: Path) -> None:
    path = here / "a.jsonl"
    path.write_text('{"n": 1}\n')
    tail = Tail(path)
    assert list(tail.lines()) == []
    with path.open("a") as file:
        file.write('{"n": 2}\nnonsense\n{"n": 3')
    assert list(tail.lines()) == [{"n": 2}]
    with path.open("a") as file:
        file.write("}\n")
    assert list(tail.lines()) == [{"n": 3}]


def ostrain(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "ostrain", *arguments], env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.train
def test_from_the_command_line_to_files(here: Path) -> None:
    make_run(here, prompts=None)
    plan: tuple[str, ...] = ("sample", "sample.yaml", "-p", "a cat", "-o", "out", "--json")
    done = ostrain(*plan)
    assert done.returncode == 0, done.stderr
    (record,) = (json.loads(line) for line in done.stdout.splitlines())
    assert record["path"] == str(here / "out" / "sample_0000.mp4") and Path(record["path"]).stat().st_size > 100
    assert record["prompt"] == "a cat" and "step 3/3" in done.stderr and "out/run/samples.jsonl" in done.stderr
    failed = ostrain(*plan, "-w", "gone.safetensors")
    assert failed.returncode == 1 and failed.stdout == "" and "Traceback" not in failed.stderr
    assert "error: weights do not exist" in failed.stderr and "next: correct sample.weights" in failed.stderr

"""The same job on a real Slurm, with only ``cluster:`` changed: submit, queue, logs, cancel, resume, rm."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Cli, losses, step_of
from tests.testbed import Testbed
from tests.testbed.slurm import SlurmBed

pytestmark = [pytest.mark.train, pytest.mark.nodes]

STEPS = ("train.steps=6", "train.checkpoint.every=3")


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmBed]:
    with Testbed(2) as network, SlurmBed(2, under=network) as bed:
        yield bed


def inventory(cli: Cli, slurm: SlurmBed) -> str:
    path = cli.folder / "slurm.yaml"
    path.write_text(
        f"""name: bed
backend: slurm
device: CPU
defaults: {{python: {sys.executable}, root: {json.dumps(str(cli.folder / "shared root"))}}}
slurm: {{partition: main, gres: npu, time: 30m, config: {slurm.config}}}
""",
        encoding="utf-8",
    )
    return f"cluster={path}"


def test_the_quick_start_trains_to_the_same_losses(cli: Cli, slurm: SlurmBed) -> None:
    """Two nodes of one worker each, and two local workers: the same global batch, the same losses."""
    here = cli.submit(*STEPS, "devices_per_node=2")
    cli.wait(here, lambda told: told["state"] == "SUCCEEDED")
    local = losses(Path(cli.environment["HOME"]) / ".local/state/ostrain/runs" / here / "local")
    run = cli.submit(*STEPS, "nodes=2", "devices_per_node=1", inventory(cli, slurm))
    shown = cli("logs", "-f", run, timeout=150).stdout.splitlines()
    assert sum(" INFO step " in line for line in shown) == 12
    told = cli.wait(run, lambda told: told["settled"], 20)
    assert (told["state"], told["checkpoint"], step_of(told)) == ("SUCCEEDED", 6, 6)
    assert "SUCCEEDED" in cli("ps").stdout
    remote = losses(cli.folder / "shared root/runs" / run / "node-0")
    assert remote.keys() == local.keys() and len(local) == 6
    for step, (loss, _) in local.items():
        assert remote[step][0] == pytest.approx(loss, rel=1e-5)
    cli("rm", "--yes", run)
    assert not (cli.folder / "shared root/runs" / run).exists()


@pytest.mark.long
def test_queued_cancelled_and_resumed_from_the_command_line(cli: Cli, slurm: SlurmBed) -> None:
    cluster = inventory(cli, slurm)
    hog = slurm.run(
        "sbatch", "--parsable", "--exclusive", "--nodes=2", "--output=/dev/null", "--wrap=sleep 100"
    ).strip()
    run = cli.submit("train.steps=3", "nodes=1", "devices_per_node=1", cluster)
    told = cli.wait(run, lambda told: told["waits_for"] in ("Resources", "Priority"), 20)
    assert (told["state"], told["reason"], told["exit_code"]) == ("PREPARING", "queued", 0)
    text = cli("status", run).stdout
    assert "PREPARING  queued: " in text and "Slurm job" in text and "PENDING" in text
    cli("cancel", run)
    assert cli.status(run)["state"] == "CANCELLED"
    slurm.run("scancel", hog)
    cli("resume", run, "--follow", timeout=150)
    told = cli.status(run)
    assert (told["state"], told["attempt"]) == ("SUCCEEDED", 2)
    cli("rm", "--yes", run)

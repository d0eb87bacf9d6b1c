"""Whole runs on ModelArts' stand-in, from the command line: real agents in containers that are processes here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.modelarts_site import Cloud, opened
from tests.cluster.toys import wait_until


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    with opened(tmp_path, monkeypatch) as site:
        yield site


def submitted(cloud: Cloud, *options: str, job: str = "", nodes: int = 2) -> str:
    result = cloud.ostrain("submit", str(cloud.job(job, nodes)), "--json", *options)
    assert result.exception is None, result.output
    return str(json.loads(result.stdout[: result.stdout.index("}") + 1])["run_id"])


def status(cloud: Cloud, run: str) -> dict[str, Any]:
    return dict(json.loads(cloud.ostrain("status", run, "--json").stdout))


def until(cloud: Cloud, run: str, state: str) -> dict[str, Any]:
    return dict(wait_until(lambda: (now := status(cloud, run))["state"] == state and now, 30.0, state))


def test_a_run_from_submit_to_rm(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "tok-4711-é-" + "x" * 40
    monkeypatch.setenv("OSTRAIN_SECRET_TOK", secret)
    cloud.jobs.hold = True
    run = submitted(cloud, job="env: {TOKEN: {secret: tok}}\n")
    queued = status(cloud, run)
    assert (queued["state"], queued["reason"]) == ("PREPARING", "queued")
    job = next(iter(cloud.jobs.jobs.values()))
    assert secret not in json.dumps(job.body) and not any(
        secret.encode() in data for data in cloud.obs.objects.values()
    )
    assert sum("/sealed-1" in key for key in cloud.obs.objects) == 1
    cloud.jobs.hold = False
    followed = cloud.ostrain("logs", "-f", run)
    assert followed.return_value == 0, followed.output
    lines = capfd.readouterr().out.splitlines()  # it writes to the descriptor itself
    for rank in range(4):
        own = [line for line in lines if f"rank {rank} " in line]
        assert own[0].endswith(f"rank {rank} begins at step 1 with token {len(secret)}")
        assert [line.split()[-1] for line in own[1:]] == list("123456") and own[0].startswith(
            f"node-{rank // 2}/{rank}"
        )
    done = until(cloud, run, "SUCCEEDED")
    assert (done["settled"], done["checkpoint"], done["progress"]["step"]) == (True, 4, 6)
    assert not any("/sealed-" in key for key in cloud.obs.objects)
    service = cloud.ostrain("logs", run, "--source", "service").stdout
    assert "node-1/service | " in service and "running" in service
    assert cloud.ostrain("rm", "--yes", run).exception is None
    assert not [key for key in cloud.obs.objects if "/runs/" in key] and cloud.jobs.jobs == {}
    assert [key for key in cloud.obs.objects if "/archives/bundles-" in key]
    cloud.assert_well_asked()


def test_a_failed_run_is_resumed_from_its_checkpoint(cloud: Cloud) -> None:
    (cloud.toys / "break-5").touch()
    run = submitted(cloud)
    failed = until(cloud, run, "FAILED")
    assert (failed["reason"], failed["fault"]["node"], failed["fault"]["rank"]) == ("bad_data", "node-0", 1)
    wait_until(lambda: status(cloud, run)["settled"], 20.0)
    assert cloud.jobs.jobs and next(iter(cloud.jobs.jobs.values())).codes["worker-0"] == 65
    # Another machine: nothing of the containers is left but what they handed over.
    wait_until(lambda: all(job.ended for job in cloud.jobs.jobs.values()))
    (cloud.folder / "root").rename(cloud.folder / "old-root")
    assert cloud.ostrain("resume", run).exception is None
    done = until(cloud, run, "SUCCEEDED")
    assert done["attempt"] == 2
    shown = cloud.ostrain("logs", run, "--attempt", "2").stdout
    assert "rank 0 begins at step 5" in shown and "rank 2 begins at step 5" in shown and "step 4" not in shown
    assert "rank 0 step 4" in cloud.ostrain("logs", run, "--attempt", "1").stdout
    cloud.assert_well_asked()


def test_cancel_of_a_running_and_of_a_waiting_run(cloud: Cloud) -> None:
    cloud.hold_workers()
    run = submitted(cloud, nodes=1)
    until(cloud, run, "RUNNING")
    assert cloud.ostrain("rm", "--yes", run).exception is not None
    cancelled = cloud.ostrain("cancel", run)
    assert cancelled.exception is None and cancelled.return_value == 0, cancelled.output
    told = status(cloud, run)
    assert (told["state"], told["reason"], told["settled"]) == ("CANCELLED", "cancelled", True)
    cloud.jobs.hold = True
    waiting = submitted(cloud, nodes=1)
    assert cloud.ostrain("cancel", waiting).return_value == 0
    assert status(cloud, waiting)["reason"] == "cancelled"
    cloud.assert_well_asked()


def test_a_container_that_cannot_begin_and_a_job_ended_in_the_console(cloud: Cloud) -> None:
    cloud.jobs.extra = {"VC_WORKER_HOSTS": "localhost,worker-1.never.invalid"}
    cloud.inventory(more="", python=str(cloud.toys / "python"))
    (cloud.folder / "clusters/cloud.yaml").write_text(
        (cloud.folder / "clusters/cloud.yaml").read_text().replace("wait: 5s", "wait: 1s")
    )
    run = submitted(cloud)
    failed = until(cloud, run, "FAILED")
    assert failed["reason"] == "start_failed" and "1 of 2 workers did not come up" in failed["fault"]["message"]["what"]
    cloud.jobs.extra = {}
    cloud.hold_workers()
    run = submitted(cloud, nodes=1)
    until(cloud, run, "RUNNING")
    job = next(job for job in cloud.jobs.jobs.values() if job.phase == "Running")
    with cloud.jobs.lock:
        cloud.jobs._terminate(job)
    assert until(cloud, run, "CANCELLED")["reason"] == "service_stopped"
    cloud.assert_well_asked()

"""Runs on a real Slurm of several slurmd: its queue, its signals, its ends. Workers are toys."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.backend import Chunk, FollowItem, NodeError, NodeNews, RunRef
from cluster.slurm_backend import SlurmBackend
from tests.cluster.conftest import environ_tags
from tests.cluster.slurm_site import SlurmSite
from tests.cluster.toys import good, launch, wait_until
from tests.testbed.slurm import SlurmBed

pytestmark = pytest.mark.nodes

FACTS = """import os
print("ready", os.environ["OSTRAIN_NODE_RANK"], os.environ["OSTRAIN_MASTER_ADDRESS"], len(os.environ["TOKEN"]),
      os.environ.get("SUBMITTER", "nothing"), os.environ["OSTRAIN_ATTEMPT"], flush=True)
"""
ENDLESS = "import time\nprint('ready', flush=True)\ntime.sleep(300)\n"
# The first attempt fails as told, later ones succeed.
FIRST_FAILS = """import os, sys, time
print("attempt", os.environ["OSTRAIN_ATTEMPT"], flush=True)
if os.environ["OSTRAIN_ATTEMPT"] == "1" and os.environ["OSTRAIN_NODE_RANK"] == "1":
    {how}
time.sleep(300 if os.environ["OSTRAIN_ATTEMPT"] == "1" else 0.5)
"""


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmBed]:
    with SlurmBed(4) as bed:
        yield bed


@pytest.fixture
def site(slurm: SlurmBed, tmp_path: Path) -> Iterator[SlurmSite]:
    place = SlurmSite(tmp_path, slurm)
    yield place
    place.close()
    for run in place.runs:
        assert environ_tags(f"OSTRAIN_RUN={run.run_id}") == [], "processes of a run are left"


@pytest.fixture(scope="module", autouse=True)
def limited(slurm: SlurmBed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SlurmSite, RunRef]]:
    """A run that reaches its time limit while the other tests go on: Slurm looks at limits every 30 s only."""
    place = SlurmSite(tmp_path_factory.mktemp("limited"), slurm)
    run = place.start(ENDLESS, nodes=1, name="limited", time="1m", warning=60, options={"nodelist": "n4"})
    yield place, run
    place.close()


def ready(site: SlurmSite, run: RunRef) -> None:
    """Wait until every worker has printed something."""

    def told() -> bool:
        logs = [site.run_dir(run, rank) / f"logs/attempt-1/worker_{rank}.log" for rank in range(len(run.plan.nodes))]
        return all(path.exists() and path.stat().st_size for path in logs)

    wait_until(told, 40.0, "workers ready")


def follow_all(site: SlurmSite, run: RunRef, patterns: tuple[str, ...] = ("logs/attempt-*/worker_*.log",)) -> Any:
    """Follow in the background; ``join`` gives what was seen."""
    seen: list[FollowItem] = []
    backend = SlurmBackend()
    thread = threading.Thread(target=lambda: seen.extend(backend.follow(run, {}, patterns)), daemon=True)
    thread.start()

    def join() -> list[FollowItem]:
        thread.join(40.0)
        assert not thread.is_alive(), "the follow does not end"
        return seen

    return join


def text_of(items: list[FollowItem], node: str) -> str:
    return "".join(item.text for item in items if isinstance(item, Chunk) and item.node == node)


def test_two_nodes_with_secrets_in_no_place_but_the_workers(
    site: SlurmSite, slurm: SlurmBed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBMITTER", "sees-this")
    run = site.run(FACTS, name="run.with_dots", gres="npu:3")
    checked = good(site.backend.probe(run.plan))["node-0"]
    assert checked["slurm"].count(".") >= 1 and "to start at" in checked["expected"]
    launch(site.backend, run, site.bundle(), TOKEN="geheim-geheim-geheim")
    follower = follow_all(site, run)
    shown = slurm.run("scontrol", "show", "job", site.job(run))
    assert "npu:3" in shown and f"JobName={run.run_id}" in shown and "geheim" not in shown
    site.wait(run, "SUCCEEDED")
    for rank in range(2):
        log = (site.run_dir(run, rank) / f"logs/attempt-1/worker_{rank}.log").read_text()
        assert log == f"ready {rank} 127.0.0.1 20 nothing 1\n"
        assert text_of(follower(), f"node-{rank}") == log
        assert not (site.run_dir(run, rank) / "agent/secrets.json").exists()
    held = [site.root, slurm.folder / "state", *slurm.folder.glob("spool-*")]
    found = subprocess.run(["grep", "-rlF", "geheim-geheim", *map(str, held)], capture_output=True, text=True)
    assert found.stdout == ""
    assert "hosts" in (site.run_dir(run) / "agent/begun.json").read_text()
    assert good(site.backend.remove(run)) and not site.run_dir(run).parent.exists()


def test_runs_that_share_a_node_get_the_devices_slurm_gave_them(site: SlurmSite) -> None:
    site.device = "Ascend"
    worker = "import os, time\nprint('ready', os.environ['OSTRAIN_DEVICES'], flush=True)\ntime.sleep(3)\n"
    node = {"nodelist": "n1"}
    runs = [site.start(worker, nodes=1, name=name, gres="npu:3", options=node) for name in ("one", "two")]
    seen = []
    for run in runs:
        site.wait(run, "SUCCEEDED")
        seen.append((site.run_dir(run) / "logs/attempt-1/worker_0.log").read_text())
    assert seen == ["ready 0\n", "ready 3\n"]  # one worker a node: the first of each share


def test_a_queued_run_says_why_and_is_cancelled_where_it_waits(site: SlurmSite) -> None:
    first = site.start(ENDLESS, nodes=3, name="first", gres="npu:8")
    second = site.start(ENDLESS, nodes=3, name="second", gres="npu:8")
    ready(site, first)

    def waits() -> Any:
        found = site.statuses(second)
        return found if found["node-0"]["scheduler"]["reason"] in ("Resources", "Priority") else None

    told = wait_until(waits, 10.0)
    assert {(one["state"], one["reason"]) for one in told.values()} == {("NONE", "queued")}
    with pytest.raises(AssertionError, match="still has jobs"):
        good(site.backend.remove(second))
    assert all(report["state"] == "CANCELLED" for report in good(site.backend.stop(second)).values())
    assert {one["state"] for one in site.statuses(second).values()} == {"CANCELLED"}
    reports = good(site.backend.stop(first, grace=5.0))
    for rank, report in enumerate(reports.values()):
        assert rank in [one["rank"] for one in report["killed"]] and not report["survivors"]
    assert {(one["state"], one["reason"]) for one in site.statuses(first).values()} == {("CANCELLED", "cancelled")}


def test_a_failed_node_ends_its_peers_and_a_new_submission_is_the_next_attempt(site: SlurmSite) -> None:
    run = site.start(FIRST_FAILS.format(how="sys.exit(3)"))
    told = site.wait(run, "FAILED")
    assert (told["node-1"]["reason"], told["node-0"]["reason"]) == ("worker_failed", "peer_failed")
    assert told["node-1"]["fault"]["exit_code"] == 3
    good(site.backend.stop(run, reason="superseded"))
    launch(site.backend, run, site.bundle(), attempt=2)
    told = site.wait(run, "SUCCEEDED")
    assert told["node-0"]["attempt"] == 2


def test_requeue_begins_the_next_attempt_with_nobody_there(site: SlurmSite, slurm: SlurmBed) -> None:
    run = site.start(FIRST_FAILS.format(how="time.sleep(300)"), requeue=True, secrets={"TOKEN": "geheim-geheim"})
    follower = follow_all(site, run)
    ready(site, run)
    slurm.run("scontrol", "requeue", site.job(run))
    told = site.wait(run, "SUCCEEDED", 30.0)
    assert told["node-0"]["attempt"] == 2
    lines = (site.run_dir(run) / "events.jsonl").read_text().splitlines()
    ends = [event for event in map(json.loads, lines) if event["event"] == "ended"]
    assert {(event["attempt"], event["state"]) for event in ends} == {(1, "FAILED"), (2, "SUCCEEDED")}
    assert [event["reason"] for event in ends][-2:] == ["slurm_preempted", "done"]
    seen = follower()
    assert text_of(seen, "node-1") == "attempt 1\nattempt 2\n"
    news = [item.status for item in seen if isinstance(item, NodeNews) and item.node == "node-0"]
    assert (news[-1]["state"], news[-1]["attempt"]) == ("SUCCEEDED", 2)
    assert "queued" in {status["reason"] for status in news}
    assert not list(site.root.glob("runs/*/*/agent/secrets.json"))


@pytest.mark.long
def test_a_chain_goes_on_after_an_accident_and_ends_with_success(site: SlurmSite, slurm: SlurmBed) -> None:
    run = site.start(FIRST_FAILS.format(how="os.kill(os.getpid(), 9)"), attempts=3)
    assert text_of(follow_all(site, run)(), "node-1") == "attempt 1\nattempt 2\n"
    told = site.statuses(run)
    assert {(one["state"], one["attempt"]) for one in told.values()} == {("SUCCEEDED", 2)}
    wait_until(lambda: not slurm.run("squeue", "--noheader", f"--name={run.run_id}").strip(), 15.0)


@pytest.mark.long
def test_a_chain_ends_where_another_attempt_cannot_help(site: SlurmSite, slurm: SlurmBed) -> None:
    run = site.start(FIRST_FAILS.format(how="sys.exit(64)"), attempts=3)
    follow_all(site, run)()
    told = site.statuses(run)
    assert told["node-1"]["fault"]["reason"] == "bad_config" and told["node-1"]["attempt"] == 1
    assert not told["node-0"]["scheduler"]["live"]
    assert not slurm.run("squeue", "--noheader", f"--name={run.run_id}").strip()


def test_scancel_by_somebody_else_is_a_cancel(site: SlurmSite, slurm: SlurmBed) -> None:
    run = site.start(ENDLESS)
    ready(site, run)
    slurm.run("scancel", site.job(run))
    told = site.wait(run, ["CANCELLED"])
    assert {one["reason"] for one in told.values()} == {"cancelled"}


def test_a_node_that_dies_is_told_and_the_others_end(site: SlurmSite, slurm: SlurmBed) -> None:
    run = site.start(ENDLESS, options={"nodelist": "n2,n3"})
    ready(site, run)
    slurm.freeze_node("n3")
    try:  # as slurmctld does by itself after SlurmdTimeout, or a site's health check
        slurm.run("scontrol", "update", "nodename=n3", "state=down", "reason=frozen")
        told = site.wait(run, "FAILED", 40.0)
    finally:
        slurm.revive_node("n3")
        slurm.run("scontrol", "update", "nodename=n3", "state=resume")
    assert {one["reason"] for one in told.values()} <= {"slurm_node_fail", "peer_failed"}
    assert "slurm_node_fail" in {one["reason"] for one in told.values()}
    wait_until(lambda: "down" not in slurm.run("sinfo", "--noheader", "--format=%T"), 20.0, "n3 is back")


def test_slurm_refuses_before_anything_is_staged(site: SlurmSite) -> None:
    for section, words in (({"partition": "nosuch"}, "partition"), ({"gres": "npu:99"}, "configuration")):
        answers = site.backend.probe(site.run(FACTS, **section).plan)
        error = answers["node-0"]
        assert isinstance(error, NodeError) and error.exit_code == 3 and words in error.why, str(error)
    assert not (site.root / "runs").exists()


def test_missing_programs_and_a_dead_controller_are_told(site: SlurmSite, tmp_path: Path) -> None:
    answers = site.backend.probe(site.run(FACTS, programs="/no/such/folder").plan)
    assert "no program /no/such/folder/sbatch" in str(answers["node-0"])
    other = tmp_path / "slurm.conf"
    text = site.bed.config.read_text().splitlines()
    other.write_text("\n".join("SlurmctldPort=1" if line.startswith("SlurmctldPort") else line for line in text))
    (tmp_path / "gres.conf").write_text("")
    fast = "MessageTimeout=2\nSlurmctldTimeout=2\n"
    other.write_text(other.read_text() + "\n" + fast)
    error = site.backend.probe(site.run(FACTS, config=str(other)).plan)["node-0"]
    assert isinstance(error, NodeError)


@pytest.mark.long
def test_the_time_limit_ends_a_run_in_good_order(limited: tuple[SlurmSite, RunRef]) -> None:
    place, run = limited
    told = place.wait(run, "FAILED", 75.0)["node-0"]
    assert told["reason"] == "slurm_timeout"
    with contextlib.suppress(ProcessLookupError):
        os.kill(told["agent"]["pid"], 0)
        wait_until(lambda: environ_tags(f"OSTRAIN_RUN={run.run_id}") == [], 10.0)

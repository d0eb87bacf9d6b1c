"""The client of training jobs against faults: what is repeated, what is not, and what people are told."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.cloud import CloudError, Patience, seconds_of
from cluster.modelarts import Job, TaskEnd, TrainingJobs
from cluster.modelarts_status import SETTLE, Attempt, merged
from cluster.obs import CloudKeys, HuaweiObs
from ostrain.errors import OstrainError
from ostrain.plan import NodeAccess
from tests.cluster.cloud_server import ACCESS_KEY, SECRET_KEY, Answer, Fault, served
from tests.cluster.modelarts_service import PROJECT, ModelArtsService
from tests.cluster.obs_service import BUCKET, ObsService
from tests.cluster.toys import make_plan, node_plan

KEYS = CloudKeys(ACCESS_KEY, SECRET_KEY)


@dataclass
class Site:
    service: ModelArtsService
    obs: ObsService
    client: TrainingJobs
    store: HuaweiObs
    waits: list[float]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    obs = ObsService()
    service = ModelArtsService(obs, tmp_path)
    service.run_containers = False
    with served(obs), served(service):
        waits: list[float] = []
        patience = Patience(tries=4, first=0.01, total=60.0, sleep=waits.append)
        client = TrainingJobs(service.url, PROJECT, "0", KEYS, timeout=0.5, patience=patience)
        store = HuaweiObs(obs.url, BUCKET, KEYS, timeout=0.5, patience=patience)
        yield Site(service, obs, client, store, waits)


def body(name: str = "ostrain-a-1") -> dict[str, Any]:
    return {
        "kind": "job",
        "metadata": {"name": name},
        "algorithm": {"code_dir": "/b/code/", "command": "bash x", "engine": {"image_url": "o/i:1"}},
        "spec": {"resource": {"flavor_id": "f", "node_count": 1}},
    }


def json_answer(status: int, value: Any, **headers: str) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})


BUSY = json_answer(429, {"error_code": "APIGW.0308", "error_msg": "too many"}, **{"Retry-After": "7"})
ILL = json_answer(503, {"error_code": "ModelArts.9999", "error_msg": "ill"})
BROKEN = [
    Answer(200, b'{"kind": "job", "metad', {"Content-Type": "application/json"}),
    Answer(200, b'{"metadata": {"id": "x"}}', {"Content-Type": "application/json"}, cut=5),
    json_answer(200, {"metadata": {"id": 5, "name": "n"}, "status": {"phase": "Running"}}),
    json_answer(200, {"metadata": {"id": "x", "name": "n"}, "status": {"phase": "Dancing"}}),
    json_answer(200, ["a", "list"]),
    Answer(200, b"", {"Content-Type": "application/json"}),
]


@pytest.mark.parametrize("answer", [BUSY, ILL, *BROKEN, None])
def test_reading_is_repeated_after_whatever_may_pass(site: Site, answer: Answer | None) -> None:
    job = site.client.create(body())
    site.service.faults = [Fault("GET", job.id, 2, answer, drop=answer is None)]
    assert site.client.show(job.id).phase == "Pending"
    assert site.service.seen("GET", job.id) == 3 and len(site.waits) == 2
    if answer is BUSY:
        assert all(wait >= 7.0 for wait in site.waits)
    assert site.service.problems == []


def test_a_slow_answer_is_given_up_and_asked_for_again(site: Site) -> None:
    job = site.client.create(body())
    site.service.faults = [Fault("GET", job.id, 1, wait=1.0)]
    assert site.client.show(job.id).id == job.id
    assert site.service.seen("GET", job.id) == 2


def test_repeating_has_an_end_and_says_what_the_service_said(site: Site) -> None:
    job = site.client.create(body())
    site.service.faults = [Fault("GET", job.id, 99, ILL)]
    with pytest.raises(CloudError, match=f"ModelArts: asking for job {job.id} failed") as caught:
        site.client.show(job.id)
    assert site.service.seen("GET", job.id) == 4
    assert caught.value.why == "503 ModelArts.9999: ill" and caught.value.exit_code == 4
    assert SECRET_KEY not in str(caught.value) and ACCESS_KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "kind", "exit_code"), [(400, "rejected", 2), (401, "denied", 4), (403, "denied", 4)]
)
def test_a_refusal_is_told_at_once(site: Site, status: int, kind: str, exit_code: int) -> None:
    answer = json_answer(status, {"error_code": "ModelArts.0116", "error_msg": "quota"}, **{"X-Request-Id": "r-7"})
    site.service.faults = [Fault("POST", "training-jobs", 9, answer)]
    with pytest.raises(CloudError) as caught:
        site.client.create(body())
    assert (caught.value.kind, caught.value.exit_code) == (kind, exit_code) and site.waits == []
    assert caught.value.why == f"{status} ModelArts.0116: quota; request r-7"


@pytest.mark.parametrize("fault", ["drop", "slow", "broken", "ill"])
def test_an_unclear_creation_that_arrived_is_found_by_its_name(site: Site, fault: str) -> None:
    answers = {"broken": BROKEN[0], "ill": ILL}
    wait = 1.0 if fault == "slow" else 0.0
    site.service.faults = [
        Fault("POST", "/training-jobs", 1, answers.get(fault), act=True, wait=wait, drop=fault == "drop")
    ]
    job = site.client.create(body())
    assert job.name == "ostrain-a-1" and list(site.service.jobs) == [job.id]
    assert sum(one.path.endswith("/training-jobs") for one in site.service.requests) == 1


def test_a_creation_is_sent_again_only_where_it_surely_was_not_carried_out(site: Site) -> None:
    site.service.faults = [Fault("POST", "/training-jobs", 1, BUSY), Fault("POST", "/training-jobs", 1, ILL)]
    job = site.client.create(body())
    posts = [one for one in site.service.requests if one.path.endswith("/training-jobs")]
    assert len(posts) == 3 and list(site.service.jobs) == [job.id] and max(site.waits) >= 7.0
    site.service.requests.clear()
    site.service.faults = [Fault("POST", "/training-jobs", 1, BROKEN[0], act=False)]
    with pytest.raises(CloudError, match="creating job ostrain-b-1 failed"):
        site.client.create(body("ostrain-b-1"))
    assert sum(one.path.endswith("/training-jobs") for one in site.service.requests) == 1
    assert site.service.seen("POST", "training-job-searches") == 4


def test_stopping_what_has_ended_and_deleting_what_is_gone_are_no_errors(site: Site) -> None:
    job = site.client.create(body())
    site.client.stop(job.id)
    site.client.stop(job.id)
    assert site.client.show(job.id).phase == "Terminated"
    site.client.delete(job.id)
    site.client.delete(job.id)
    with pytest.raises(CloudError) as caught:
        site.client.show(job.id)
    assert caught.value.kind == "missing"


def test_wrong_keys_and_no_server(site: Site) -> None:
    patience = Patience(tries=2, first=0.01, sleep=lambda _: None)
    wrong = TrainingJobs(site.service.url, PROJECT, "0", CloudKeys(ACCESS_KEY, "x"), timeout=5.0, patience=patience)
    with pytest.raises(CloudError) as caught:
        wrong.check()
    assert caught.value.kind == "denied" and site.service.problems
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    for call in (
        TrainingJobs(nobody, PROJECT, "0", KEYS, timeout=1.0, patience=patience).check,
        lambda: HuaweiObs(nobody, BUCKET, KEYS, timeout=1.0, patience=patience).get("x"),
    ):
        with pytest.raises(CloudError) as caught:
            call()
        assert caught.value.kind == "unreachable"


def test_objects_of_every_name_and_size(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(bytes(range(256)) * 5000)
    for name, content in [
        ("a/x y&é<.json", b"1"),
        ("a/empty", b""),
        ("a/file", file),
        *[(f"a/{i}", b"n") for i in range(9)],
    ]:
        site.store.put(name, content)
    assert len(list(site.store.list("a/"))) == 12  # three pages
    assert site.store.get("a/x y&é<.json") == b"1" and site.store.size("a/file") == 1280000
    assert site.store.get("a/file", 1279999, 10) == b"\xff" and site.store.get("a/file", 1280000) == b""
    assert site.store.get("a/none") is None and site.store.size("a/none") is None
    site.store.copy("a/file", "b/file")
    assert site.obs.objects["b/file"] == file.read_bytes()
    site.store.delete(entry.key for entry in list(site.store.list("a/")))
    assert list(site.obs.objects) == ["b/file"] and site.obs.problems == []


@pytest.mark.parametrize("fault", ["503", "cut", "drop"])
def test_objects_are_read_whole_or_again(site: Site, fault: str) -> None:
    site.obs.objects["k"] = b"0123456789"
    answer = {"503": Answer(503, b"<Error><Code>SlowDown</Code></Error>"), "cut": Answer(200, b"0123456789", cut=4)}
    site.obs.faults = [Fault("GET", "/k", 2, answer.get(fault), drop=fault == "drop")]
    assert site.store.get("k") == b"0123456789" and site.obs.seen("GET", "/k") == 3


def test_a_bucket_in_the_name_of_the_host(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def resolved(host: Any, *rest: Any, **more: Any) -> Any:
        return real("127.0.0.1" if str(host).endswith("obs.region.test") else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    port = site.obs.url.rpartition(":")[2]
    store = HuaweiObs(f"http://obs.region.test:{port}", BUCKET, KEYS, timeout=2.0, patience=Patience(tries=1))
    store.put("a/b c", b"1")
    store.copy("a/b c", "a/d")
    assert store.get("a/d") == b"1" and [one.key for one in store.list("a/")] == ["a/b c", "a/d"]
    store.delete(["a/d"])
    assert list(site.obs.objects) == ["a/b c"] and "OBS" in site.obs.kinds and site.obs.problems == []


def test_certificates_and_host_names_are_verified() -> None:
    store = HuaweiObs("https://obs.region.test", BUCKET, KEYS, timeout=1.0, patience=Patience(tries=1))
    assert store._client.context.check_hostname and store._client.context.verify_mode.name == "CERT_REQUIRED"
    assert "sk-of" not in repr(KEYS)


def test_a_missing_extra_is_told_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obs", None)
    monkeypatch.setitem(sys.modules, "huaweicloudsdkmodelarts.v1", None)
    patience = Patience(tries=1)
    for call in (
        lambda: TrainingJobs("http://x", PROJECT, "0", KEYS, timeout=1.0, patience=patience),
        lambda: HuaweiObs("http://x", BUCKET, KEYS, timeout=1.0, patience=patience),
    ):
        with pytest.raises(OstrainError, match="needs a library that is not here") as caught:
            call()
        assert (caught.value.next_step, caught.value.exit_code) == ("pip install 'ostrain[modelarts]'", 2)


def test_retry_after_is_a_number_or_a_date() -> None:
    assert seconds_of("3", 0.0) == 3.0 and seconds_of("soon", 0.0) == 0.0 and seconds_of(None, 0.0) == 0.0
    assert seconds_of("Thu, 01 Jan 1970 00:01:00 GMT", 20.0) == 40.0


@pytest.mark.parametrize(
    ("phase", "said", "cancelled", "late", "expected"),
    [
        ("Creating", None, False, False, ("NONE", "queued")),
        ("Pending", None, False, False, ("NONE", "queued")),
        ("Pending", "RUNNING", False, False, ("NONE", "preparing")),
        ("Running", None, False, False, ("NONE", "preparing")),
        ("Running", "RUNNING", False, False, ("RUNNING", "running")),
        ("Running", "FAILED", False, False, ("FAILED", "bad_data")),
        ("Running", "CANCELLED", False, False, ("RUNNING", "running")),
        ("Terminating", "RUNNING", True, False, ("RUNNING", "running")),
        ("Terminated", None, True, False, ("CANCELLED", "cancelled")),
        ("Terminated", "RUNNING", False, False, ("CANCELLED", "service_stopped")),
        ("Terminated", "CANCELLED", False, False, ("CANCELLED", "service_stopped")),
        ("Terminated", "CANCELLED", True, False, ("CANCELLED", "cancelled")),
        ("Terminated", "FAILED", False, False, ("FAILED", "bad_data")),
        ("Completed", None, False, False, ("RUNNING", "running")),
        ("Completed", None, False, True, ("SUCCEEDED", "done")),
        ("Completed", "SUCCEEDED", False, False, ("SUCCEEDED", "done")),
        ("Failed", "RUNNING", False, False, ("RUNNING", "running")),
        ("Failed", "RUNNING", False, True, ("FAILED", "service_failed")),
        ("Failed", "FAILED", False, True, ("FAILED", "bad_data")),
        ("Abnormal", None, False, True, ("FAILED", "service_failed")),
    ],
)
def test_phases_and_last_words(
    phase: str, said: str | None, cancelled: bool, late: bool, expected: tuple[str, str]
) -> None:
    now = time.time()
    reasons = {"RUNNING": "running", "FAILED": "bad_data", "CANCELLED": "cancelled", "SUCCEEDED": "done"}
    record = (
        {"attempt": 2, "phase": "x", "status": {"state": said, "reason": reasons[said]}} if said else {"attempt": 1}
    )
    job = Job("j", "n", phase, now - 900, now - (SETTLE + 9 if late else 1), (TaskEnd("worker-0", 137, "OOMKilled"),))
    plan = make_plan("modelarts", [node_plan("node-0", NodeAccess("node-0"))])
    told = merged(plan, Attempt(2, now - 900, job, cancelled), {"node-0": record}, now)["node-0"]
    assert (told["state"], told["reason"]) == expected
    assert told["scheduler"]["live"] == (phase in ("Creating", "Pending", "Running", "Terminating"))
    if expected[1] == "service_failed":
        assert told["fault"]["exit_code"] == 137 and "OOMKilled" in told["fault"]["message"]["why"]


def test_the_platform_restarts_jobs_where_it_is_asked_to() -> None:
    now = time.time()
    plan = make_plan("modelarts", [node_plan("node-0", NodeAccess("node-0"))], service={"auto_restart": 3})
    record = {"attempt": 1, "status": {"state": "FAILED", "reason": "worker_killed", "fault": {"time": now}}}
    running = Attempt(1, now, Job("j", "n", "Running", now, 0.0))
    assert merged(plan, running, {"node-0": record}, now)["node-0"]["state"] == "RUNNING"
    ended = Attempt(1, now, Job("j", "n", "Failed", now, now))
    assert merged(plan, ended, {"node-0": record}, now)["node-0"]["reason"] == "worker_killed"

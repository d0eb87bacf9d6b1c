"""No secret reaches a log: masked where it is printed, with every other byte kept, whoever is killed."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import urllib.parse
from collections.abc import Callable

import pytest

from cluster.agent import Masker, spellings
from tests.cluster.conftest import LocalSite
from tests.cluster.toys import good, launch, wait_state, wait_until

TOKEN = "hf_S3cretValueOfTheTest"
KEY = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END KEY-----"
SECRETS = {"TOKEN": TOKEN, "KEY": KEY, "LONGER": TOKEN + "AndMore", "ODD": 'q"uo\\te$é'}


def _base64(value: str) -> str:
    return base64.b64encode(b"user:" + value.encode() + b"@").decode()


WRITTEN: list[Callable[[str], str]] = [str, repr, json.dumps, lambda v: urllib.parse.quote(v, safe=""), _base64]


@pytest.mark.parametrize("seed", range(40))
def test_however_the_stream_is_cut(seed: int) -> None:
    draw = random.Random(seed)
    plain = ["hf_", "hf_S3cret", "-----", "\n", "step 3 loss 0.5", "漢", "\\"]
    parts = [
        draw.choice(WRITTEN)(draw.choice(list(SECRETS.values()))) if draw.random() < 0.5 else draw.choice(plain)
        for _ in range(40)
    ]
    data, masker, out = " ".join(parts).encode(), Masker(SECRETS), b""
    while data:
        cut = draw.randint(1, 30)
        out, data = out + masker.feed(data[:cut]), data[cut:]
    out += masker.end()
    assert not [one for one in masker.names if one in out]
    assert out.count("漢".encode()) == parts.count("漢")
    assert out.count(b"step 3 loss 0.5") == parts.count("step 3 loss 0.5")


def test_what_is_no_secret_is_not_changed_and_not_kept_waiting() -> None:
    masker = Masker(SECRETS)
    assert masker.feed(b"prefix hf_S3cre\n") == b"prefix hf_S3cre\n"
    assert masker.feed(b"hf_S3cre") + masker.end() == b"[secret LONGER]", "the greater part of one, cut off by a kill"
    assert spellings("abc") == set()


PRINTS = f"""
import os, sys, time
value = os.environ["TOKEN"]
for number in range(300):
    sys.stdout.write(f"line {{number}} " + (value if number % 7 == 0 else "x") + "\\n")
    sys.stdout.flush()
    if number % 50 == 0:
        os.write(2, b"to stderr " + value[:9].encode()); time.sleep(0.02); os.write(2, value[9:].encode() + b"\\n")
print("ready", len(value), {KEY.splitlines()[1]!r}, flush=True)
"""


def expected() -> list[str]:
    lines = []
    for number in range(300):
        lines.append(f"line {number} " + ("[secret TOKEN]" if number % 7 == 0 else "x"))
        if number % 50 == 0:
            lines.append("to stderr [secret TOKEN]")
    return lines


def log_of(site: LocalSite, name: str = "worker_0.log", run: str = "run-1") -> str:
    path = site.root / "runs" / run / "node-0" / "logs" / "attempt-1" / name
    return path.read_text() if path.exists() else ""


def test_every_line_once_and_masked(site: LocalSite) -> None:
    run = site.run(PRINTS)
    launch(site.backend, run, site.bundle(), TOKEN=TOKEN, KEY=KEY)
    status = wait_state(site.backend, run, "SUCCEEDED")
    assert status["workers"][0]["exit_code"] == 0
    assert log_of(site).splitlines() == [*expected(), f"ready {len(TOKEN)} [secret KEY]"]


@pytest.mark.parametrize("victim", ["worker", "wrapper", "agent"])
def test_nothing_is_lost_when_somebody_is_killed(site: LocalSite, victim: str) -> None:
    run = site.run(PRINTS + "time.sleep(300)\n")
    launch(site.backend, run, site.bundle(), TOKEN=TOKEN)
    wait_until(lambda: "ready" in log_of(site), 15, "output")
    status = good(site.backend.poll(run))["node-0"]
    record = json.loads((site.run_dir(run) / "workers" / "attempt-1" / "rank-0.json").read_text())
    pid = {"worker": record["pid"], "wrapper": record["wrapper_pid"], "agent": status["agent"]["pid"]}[victim]
    os.kill(pid, signal.SIGKILL)
    wait_state(site.backend, run, "FAILED")
    assert log_of(site).splitlines()[:-1] == expected()
    state = json.loads((site.run_dir(run) / "agent" / "state.json").read_text())
    for writer in (record["writer_pid"], state["writer_pid"]):
        wait_until(lambda pid=writer: not os.path.exists(f"/proc/{pid}"), 20, "whoever writes the log ends with it")


def test_a_launcher_that_prints_a_secret(site: LocalSite) -> None:
    run = site.run("print('ready')", launch='echo "token is $TOKEN"; exec "$PYTHON" launcher.py')
    launch(site.backend, run, site.bundle(), TOKEN=TOKEN)
    wait_state(site.backend, run, "SUCCEEDED")
    assert log_of(site, "launcher.log") == "token is [secret TOKEN]\nlaunched\n"


def test_cancel_ends_a_masked_worker_within_its_grace(site: LocalSite) -> None:
    stubborn = "import signal, time\nsignal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True))\n"
    run = site.run(stubborn + "print('ready', flush=True)\nwhile True: time.sleep(1)\n")
    launch(site.backend, run, site.bundle(), TOKEN=TOKEN)
    wait_until(lambda: "ready" in log_of(site), 15, "output")
    report = good(site.backend.stop(run, grace=2.0))["node-0"]
    assert report["survivors"] == []
    assert log_of(site).splitlines() == ["ready", "asked"]
    assert 0 in [one["rank"] for one in report["killed"] if one["signal"] == "SIGKILL"]

"""Who is stuck and why, over SSH: three real nodes, one of them elsewhere, stopped, then cut off."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import backends
from cluster.backend import Backend, NodeError
from ostrain.stuck import look
from ostrain.why.evidence import gather
from ostrain.why.timeline import build
from ostrain.why.verdict import conclude
from tests.cluster.test_ssh_runs import run_on
from tests.cluster.toys import good, launch, toy_bundle, wait_ready, wait_until
from tests.cluster.workers import worker
from tests.testbed import Testbed

pytestmark = pytest.mark.nodes


@pytest.fixture
def backend(bed: Testbed) -> Iterator[Backend]:
    opened = backends.get("ssh")
    yield opened
    opened.close()


def test_the_odd_rank_of_three_nodes(bed: Testbed, backend: Backend, tmp_path: Path) -> None:
    run = run_on(bed, "stuck", worker("all_reduce", odd={1: "load_clip"}))
    launch(backend, run, toy_bundle(tmp_path))
    wait_ready(backend, run)
    report = look(backend, run)
    assert report.suspect is not None and (report.suspect.rank, report.suspect.node) == (1, "node-1")
    assert report.suspect.frame.endswith("load_clip") and "2 others wait in" in report.suspect.why

    pid = good(backend.poll(run))["node-2"]["workers"][0]["pid"]
    bed.nodes[2].kill(pid, signal.SIGSTOP)
    report = look(backend, run)
    assert report.lines == ("rank 2 on node node-2 at step 3: its process is stopped (SIGSTOP)",)
    bed.nodes[2].kill(pid, signal.SIGCONT)

    bed.nodes[0].link_down()
    try:
        start = time.monotonic()
        report = look(backend, run, timeout=5.0)
        assert time.monotonic() - start < 6.0, "a node that is cut off must not cost more than the time given"
        assert report.suspect is not None and (report.suspect.node, report.suspect.rank) == ("node-0", None)
    finally:
        bed.nodes[0].link_up()
    wait_until(lambda: not any(isinstance(one, NodeError) for one in backend.poll(run).values()), 30.0)
    good(backend.stop(run, grace=1.0))
    good(backend.remove(run))


def test_clocks_and_the_drivers_logs_of_three_nodes(bed: Testbed, backend: Backend, tmp_path: Path) -> None:
    script = (
        "import os, pathlib, time\n"
        "print('ready', flush=True)\n"
        "logs = pathlib.Path.home() / 'ascend/log/debug/plog'\n"
        "if os.environ['RANK_ID'] == '2':\n"
        "    logs.mkdir(parents=True, exist_ok=True)\n"
        "    stamp = time.strftime('%Y-%m-%d-%H:%M:%S') + '.000.000'\n"
        "    line = f'[ERROR] RUNTIME({os.getpid()},python):{stamp} [x.cc:1] ECC error, code is 507054\\n'\n"
        "    (logs / f'plog-{os.getpid()}_20260102030405.log').write_text(line)\n"
        "    (logs / 'plog-1_20260102030405.log').write_text(line)\n"
        "    time.sleep(1.2)\n"
        "else:\n"
        "    time.sleep(2.0)\n"
        "raise SystemExit(1)\n"
    )
    run = run_on(bed, "ecc", script)
    launch(backend, run, toy_bundle(tmp_path))
    wait_ready(backend, run)
    time.sleep(2.5)
    evidence = gather(backend, run, 1)
    assert not evidence.unreachable and len(evidence.clocks) == 3
    for clock in evidence.clocks.values():
        assert clock.uncertainty is not None and abs(clock.offset) <= clock.uncertainty + 0.005 < 5.0
    assert [[log["rank"] for log in logs] for logs in evidence.plogs.values()] == [[], [], [2]]
    verdict = conclude(evidence, build(evidence))
    assert verdict.first is not None and (verdict.first.rank, verdict.first.kind) == (2, "plog")
    assert verdict.code is not None and verdict.code.code == "507054"
    good(backend.stop(run, grace=1.0))
    good(backend.remove(run))

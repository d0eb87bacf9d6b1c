"""Secrets planted in the environment, in prompts and in log lines are nowhere afterwards."""

from __future__ import annotations

import base64
import os
import sqlite3
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from cluster import backends
from cluster.backend import RunRef
from ostrain.cli import cli
from ostrain.cli.common import resolved_secrets
from ostrain.errors import OstrainError
from ostrain.lifecycle import cancel, submit
from ostrain.plan import LaunchPlan, NodeAccess, PlanFile
from ostrain.store import Run, Store
from tests.cluster.conftest import LocalSite
from tests.cluster.toys import good, make_plan, node_plan, toy_bundle, wait_ready
from tests.testbed import Testbed

TOKEN = "hf_PlantedTokenValue0123"
KEY = "-----BEGIN PLANTED-----\nPlantedLineOne9876\nPlantedLineTwo5432\n-----END PLANTED-----"
SECRETS = {"HF_TOKEN": "hf_token", "SSH_KEY": "deploy_key"}
NEEDLES = [
    TOKEN.encode(),
    TOKEN[3:].encode(),
    b"PlantedLineOne9876",
    b"PlantedLineTwo5432",
    base64.b64encode(TOKEN.encode()),
    base64.b64encode(KEY.encode())[:40],
]
ENV = '# the prompt as the job says it\nexport PROMPT="a cat beside $HF_TOKEN"\n'
WORKER = """
import json, os, sys, traceback
token, key = os.environ["HF_TOKEN"], os.environ["SSH_KEY"]
print("prompt:", os.environ.get("PROMPT", "a cat beside " + token), flush=True)
print("login with", token, "and", repr(key), json.dumps({"key": key}), key, flush=True)
sys.stderr.write("https://user:" + token + "@host/path\\n")
open("metrics/rank-0.jsonl", "w").write(json.dumps({"step": 1, "attempt": 1, "loss": 1.0, "seconds": 0.1}) + "\\n")
print("ready", flush=True)
try:
    raise PermissionError("token " + token + " refused")
except PermissionError:
    traceback.print_exc()
import time; time.sleep(300)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("STATE", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.setenv("OSTRAIN_SECRET_HF_TOKEN", TOKEN)
    monkeypatch.setenv("OSTRAIN_SECRET_DEPLOY_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def found_in(folders: Iterable[Path]) -> list[str]:
    """Files, and members of archives, that hold a secret in any spelling."""
    hits = []
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                data = path.read_bytes()
                if tarfile.is_tarfile(path):
                    with tarfile.open(path) as tar:
                        data += b"".join((tar.extractfile(one) or _EMPTY).read() for one in tar if one.isfile())
                hits += [f"{path}: {needle!r}" for needle in NEEDLES if needle in data]
    return hits


class _Empty:
    def read(self) -> bytes:
        return b""


_EMPTY = _Empty()


def found_in_processes(own: Iterable[int]) -> list[str]:
    """Command lines of every process; environments of the given ones, which are ostrain's."""
    hits = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                hits += [f"{name}: {n!r}" for n in NEEDLES if n in Path(f"/proc/{name}/cmdline").read_bytes()]
            except OSError:
                continue
    for pid in own:
        hits += [f"{pid}: {n!r}" for n in NEEDLES if n in Path(f"/proc/{pid}/environ").read_bytes()]
    return hits


def watched(run: Run, folder: Path) -> None:
    """Every command that shows or packs something of a run; what they print is kept beside everything else."""
    runner = CliRunner()
    for number, words in enumerate((["status"], ["status", "--json"], ["logs"], ["ps", "--json"], ["top", "--once"],
                                    ["top", "--json"], ["report", "-o", "r.html"], ["why"],
                                    ["bundle", "-o", "b.tar.gz"])):  # fmt: skip
        name, *rest = words
        target = [] if name == "ps" else [run.run_id]
        done = runner.invoke(cli, [name, *target, *rest], standalone_mode=False)
        assert done.exception is None, (words, done.exception)
        (folder / f"printed-{number}").write_text(done.output)


def planted(store: Store, plan: LaunchPlan, folder: Path) -> tuple[Run, Mapping[str, str]]:
    secrets = resolved_secrets(plan)
    assert secrets == {"HF_TOKEN": TOKEN, "SSH_KEY": KEY}
    backend = backends.get(plan.backend)
    run = submit(
        store, backend, plan, job_path="job.yaml", bundle=toy_bundle(folder), secrets=secrets, say=lambda text: None
    )
    wait_ready(backend, RunRef(run.run_id, plan))
    backend.close()
    return run, secrets


def test_on_this_machine(home: Path, site: LocalSite) -> None:
    access = NodeAccess("localhost", root=str(home / "root"))
    node = node_plan("node-0", access, WORKER, launch='. ./env.sh; exec "$PYTHON" launcher.py',
                     files=(PlanFile("env.sh", ENV, 0o600),))  # fmt: skip
    plan = make_plan("local", [node], secrets=SECRETS)
    store = Store()
    run, _ = planted(store, plan, home)
    try:
        agent = good(site.backend.poll(RunRef(run.run_id, plan)))["node-0"]["agent"]["pid"]
        watched(run, home)
        log = (home / "root" / "runs" / run.run_id / "node-0" / "logs/attempt-1/worker_0.log").read_text()
        assert log.startswith("prompt: a cat beside [secret HF_TOKEN]\n") and log.count("[secret SSH_KEY]") == 3
        assert found_in_processes([agent]) == []
    finally:
        cancel(store, site.backend, run, grace=0.5)
    with sqlite3.connect(home / "state" / "ostrain" / "runs.db") as db:
        text = "\n".join(db.iterdump()).encode()
    assert run.run_id.encode() in text and not [needle for needle in NEEDLES if needle in text]
    store.close()
    assert found_in([home]) == []


@pytest.mark.nodes
def test_on_nodes_over_ssh(home: Path, bed: Testbed, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STATE", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(home / name.lower()))
    access = NodeAccess("node-0", python=sys.executable)
    plan = make_plan("ssh", [node_plan("node-0", access, WORKER, address=bed.nodes[0].address)], secrets=SECRETS)
    store = Store()
    run, _ = planted(store, plan, home)
    backend = backends.get("ssh")
    try:
        watched(run, home)
        inside = good(backend.poll(RunRef(run.run_id, plan)))["node-0"]["agent"]["pid"]
        assert found_in_processes([bed.nodes[0].outside_pid(inside)]) == []
    finally:
        cancel(store, backend, run, grace=0.5)
        store.close()
    assert found_in([home, bed.nodes[0].home]) == []
    good(backend.remove(RunRef(run.run_id, plan)))
    backend.close()


def test_in_a_prompt_of_the_job_it_is_refused_and_nothing_is_stored(home: Path) -> None:
    node = node_plan("node-0", NodeAccess("localhost"), files=(PlanFile("sample.yaml", f"prompts: [a {TOKEN}]\n"),))
    plan = make_plan("local", [node], secrets=SECRETS)
    with pytest.raises(OstrainError, match="a secret stands in the job") as caught:
        resolved_secrets(plan)
    assert TOKEN not in str(caught.value)
    (home / "prompts.txt").write_text(f"a dog\n{TOKEN}\n")
    with pytest.raises(OstrainError, match="a secret stands in the job"):
        resolved_secrets(replace(plan, nodes=(), sources={"prompts": str(home / "prompts.txt")}))
    (home / "prompts.txt").unlink()
    assert found_in([home]) == []

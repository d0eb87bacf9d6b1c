"""What arrives on a node, and what is read back whatever state its files are in."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from cluster import agent
from cluster.backend import NodeError
from cluster.bundle import AGENT
from tests.cluster.conftest import LocalSite
from tests.cluster.toys import good, wait_state, wait_until


class AgentFile:
    """An agent installed under a root, called as a program."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "bin").mkdir(parents=True)
        self.path = root / "bin" / "agent-test.py"
        shutil.copyfile(AGENT, self.path)

    def popen(self, *arguments: str) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        return subprocess.Popen([sys.executable, str(self.path), *arguments], stdin=pipe, stdout=pipe, stderr=pipe)

    def __call__(self, *arguments: str, input: bytes = b"") -> dict[str, Any]:
        with self.popen(*arguments) as process:
            out, _ = process.communicate(input, timeout=30)
        answer: dict[str, Any] = json.loads(out)
        assert (process.returncode == 0) == ("error" not in answer)
        return answer


@pytest.fixture
def installed(tmp_path: Path) -> AgentFile:
    return AgentFile(tmp_path / "root")


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return gzip.compress(raw.getvalue(), mtime=0)


def member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", data: bytes = b""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, data


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


UNSAFE = {
    "absolute": [member("/tmp/ostrain-evil", data=b"x")],
    "parent": [member("a/../../evil", data=b"x")],
    "absolute link": [member("l", tarfile.SYMTYPE, "/etc")],
    "link outside": [member("a/l", tarfile.SYMTYPE, "../../x")],
    "through a link": [member("d", tarfile.SYMTYPE, "."), member("d/../../x", data=b"x")],
    "hard link": [member("h", tarfile.LNKTYPE, "/etc/passwd")],
    "device": [member("n", tarfile.CHRTYPE)],
    "pipe": [member("p", tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_archives_leave_nothing(installed: AgentFile, name: str) -> None:
    data = archive(member("fine", data=b"1"), *UNSAFE[name])
    answer = installed("unpack", "files", sha(data), input=data)
    assert "unsafe member" in answer["error"]["what"]
    assert list((installed.root / "files").iterdir()) == []
    assert not Path("/tmp/ostrain-evil").exists()


def test_unpack_keeps_content_modes_and_inner_links(installed: AgentFile) -> None:
    script, data = member("bin/run", data=b"#!/bin/sh\n"), b""
    script[0].mode = 0o4777
    data = archive(member("bin", tarfile.DIRTYPE), script, member("bin/link", tarfile.SYMTYPE, "run"))
    target = Path(installed("unpack", "bundles", sha(data), input=data)["path"])
    assert target == installed.root / "bundles" / sha(data)
    assert (target / "bin/run").stat().st_mode & 0o7777 == 0o755
    assert os.readlink(target / "bin/link") == "run"


def test_damaged_archives_are_refused(installed: AgentFile) -> None:
    data = archive(member("fine", data=b"1"))
    assert "damaged" in installed("unpack", "files", sha(data), input=data[:-1])["error"]["what"]
    broken = data[: len(data) // 2]
    assert "error" in installed("unpack", "files", sha(broken), input=broken)
    assert "error" in installed("unpack", "files", "../../etc", input=data)
    assert not list((installed.root / "files").iterdir())


def test_two_unpack_at_once(installed: AgentFile) -> None:
    data = archive(member("big", data=os.urandom(1 << 20)))
    processes = [installed.popen("unpack", "files", sha(data)) for _ in range(2)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(data[: 1 << 18])
    for process in processes:
        out, _ = process.communicate(data[1 << 18 :], timeout=30)
        assert process.returncode == 0, out
    assert [path.name for path in (installed.root / "files").iterdir()] == [sha(data)]


def test_have_tells_what_is_missing(installed: AgentFile) -> None:
    data = archive(member("fine"))
    installed("unpack", "files", sha(data), input=data)
    wanted = json.dumps({"files": [sha(data), "0" * 64], "bundles": ["1" * 64]}).encode()
    assert installed("have", input=wanted)["missing"] == [["bundles", "1" * 64], ["files", "0" * 64]]


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", ""])
def test_stage_stays_in_the_run_directory(installed: AgentFile, path: str) -> None:
    request = json.dumps({"files": [{"path": path, "text": "x"}]}).encode()
    answer = installed("stage", str(installed.root / "runs/r/n"), input=request)
    assert "outside the run directory" in answer["error"]["what"]


def test_a_second_stage_sends_no_content(site: LocalSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "data"
    source.mkdir()
    (source / "clips.csv").write_text("video,caption\n")
    run = site.run(plan={"sources": {"annotations": str(source), "one.csv": str(source / "clips.csv")}})
    sent: list[tuple[str, ...]] = []
    client = site.backend.client(run.plan.nodes[0])
    call = client.call

    def counted(*arguments: Any, **options: Any) -> dict[str, Any]:
        sent.append(arguments)
        return call(*arguments, **options)

    monkeypatch.setattr(client, "call", counted)
    bundle = site.bundle()
    good(site.backend.stage(run, bundle))
    assert [arguments[:2] for arguments in sent if arguments[0] == "unpack"] == [
        ("unpack", "bundles"),
        ("unpack", "files"),
        ("unpack", "files"),
    ]
    run_dir = site.run_dir(run)
    assert (run_dir / "files/annotations/clips.csv").read_text() == (run_dir / "files/one.csv").read_text()
    sent.clear()
    good(site.backend.stage(run, bundle))
    assert [arguments[0] for arguments in sent] == ["have", "stage"]
    (source / "clips.csv").write_text("video,caption\na,b\n")
    good(site.backend.stage(run, bundle))
    assert (run_dir / "files/annotations/clips.csv").read_text().endswith("a,b\n")


def test_modes_of_staged_files(site: LocalSite) -> None:
    from ostrain.plan import PlanFile

    run = site.run(files=[PlanFile("env.sh", "A=1\n", 0o600)])
    good(site.backend.stage(run, site.bundle()))
    assert (site.run_dir(run) / "env.sh").stat().st_mode & 0o777 == 0o600
    assert (site.run_dir(run) / "launch.sh").stat().st_mode & 0o777 == 0o755


def test_a_root_that_cannot_be_written(tmp_path: Path) -> None:
    from cluster.client import AgentClient
    from cluster.local import LocalTransport

    (tmp_path / "file").write_text("")
    client = AgentClient(LocalTransport("n"), sys.executable, str(tmp_path / "file" / "root"))
    with pytest.raises(NodeError, match="cannot be written"):
        client.root(10.0)


def test_no_python_on_the_node(tmp_path: Path) -> None:
    from cluster.client import AgentClient
    from cluster.local import LocalTransport

    with pytest.raises(NodeError) as caught:
        AgentClient(LocalTransport("n"), "/no/such/python", str(tmp_path)).root(10.0)
    assert caught.value.kind == "python_missing"


# --- status: an answer whatever is missing or broken -----------------------------------------------------------------


@pytest.fixture
def ended(site: LocalSite) -> Path:
    """The run directory of a run that failed at attempt 1, with metrics, a checkpoint and a heartbeat."""
    worker = (
        "import json, os, sys\n"
        "for step in (1, 2):\n"
        "    line = json.dumps({'step': step, 'loss': 0.5, 'seconds': 0.1, 'time': 5.0, 'attempt': 1})\n"
        "    print(line, file=open('metrics/rank-0.jsonl', 'a'))\n"
        "open('metrics/rank-0.jsonl', 'a').write('{\"step\": 3, \"lo')\n"
        "for name in ('step-2', 'step-10', 'step-3.tmp', 'step-7'): os.makedirs('checkpoints/' + name)\n"
        "for name in ('step-2', 'step-10', 'step-3.tmp'): open('checkpoints/' + name + '/manifest.json', 'w').close()\n"
        "json.dump({'step': 3, 'time': 5.0, 'phase': 'train'}, open('heartbeat/rank-0', 'w'))\n"
        "sys.exit(1)\n"
    )
    run = site.start(worker)
    wait_state(site.backend, run, "FAILED")
    wait_until(lambda: not agent.status(str(site.run_dir(run)))["agent"]["alive"])
    return site.run_dir(run)


def test_progress_checkpoints_and_heartbeat(ended: Path) -> None:
    status = agent.status(str(ended))
    assert status["progress"] == {"step": 2, "steps": 10, "loss": 0.5, "seconds": 0.1, "time": 5.0, "attempt": 1}
    assert status["checkpoints"] == [2, 10]
    assert status["heartbeat"] == {"0": {"step": 3, "time": 5.0, "phase": "train"}}


def all_files(run_dir: Path) -> list[str]:
    names = [path.relative_to(run_dir) for path in sorted(run_dir.rglob("*")) if path.is_file()]
    return [str(name) for name in names if name.parts[0] not in ("launch.sh", "files")]


def test_status_survives_every_missing_or_broken_file(ended: Path) -> None:
    words = {"NONE", "FAILED"}
    for name in all_files(ended):
        path = ended / name
        whole = path.read_bytes()
        for broken in (None, b"", whole[: len(whole) // 2], b"\xff\x00 nonsense", b"[1]", b"{}"):
            path.unlink() if broken is None else path.write_bytes(broken)
            status = agent.status(str(ended))
            assert status["state"] in words and status["node"] == "node-0", (name, broken)
            json.dumps(status)
            path.write_bytes(whole)
    assert agent.status(str(ended))["reason"] == "worker_failed"


def test_a_lost_state_file_is_not_a_run_that_never_started(ended: Path) -> None:
    (ended / "agent/state.json").write_bytes(b"{")
    assert (agent.status(str(ended))["state"], agent.status(str(ended))["reason"]) == ("FAILED", "agent_lost")


def test_another_boot_id_means_a_reboot(ended: Path) -> None:
    state = json.loads((ended / "agent/state.json").read_text())
    state.update(state="RUNNING", reason="running", boot_id="another", fault=None)
    (ended / "agent/state.json").write_text(json.dumps(state))
    status = agent.status(str(ended))
    assert (status["state"], status["reason"]) == ("FAILED", "node_rebooted")


def test_a_state_is_whole_or_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    agent.write_json(str(path), {"state": "RUNNING"})

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        agent.write_json(str(path), {"state": "FAILED"})
    assert json.loads(path.read_text()) == {"state": "RUNNING"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_fetch_reads_bytes_and_stays_inside(site: LocalSite) -> None:
    run = site.start("open('blob', 'wb').write(bytes(range(256)) * 100)")
    wait_state(site.backend, run, "SUCCEEDED")
    assert site.backend.fetch(run, "node-0", "blob") == bytes(range(256)) * 100
    assert site.backend.fetch(run, "node-0", "blob", limit=3) == b"\0\1\2"
    assert site.backend.fetch(run, "node-0", "blob", limit=3, offset=254) == b"\xfe\xff\0"
    assert site.backend.fetch(run, "node-0", "blob", offset=25_600) == b""
    for path, kind in (("none", "no_run"), ("../../x", "protocol"), ("logs", "no_run")):
        with pytest.raises(NodeError) as caught:
            site.backend.fetch(run, "node-0", path)
        assert caught.value.kind == kind


def test_files_are_listed_and_hashed_where_they_lie(site: LocalSite) -> None:
    run = site.start("import os; os.makedirs('c/step-1'); open('c/step-1/a', 'w').write('abc')")
    wait_state(site.backend, run, "SUCCEEDED")
    assert good(site.backend.files(run, ("c/step-*/*", "c/none*"))) == {
        "node-0": {"c/step-1/a": {"size": 3, "sha256": None}}
    }
    hashed = good(site.backend.files(run, ("c/*/*", "c/*"), hashes=True))
    assert hashed == {"node-0": {"c/step-1/a": {"size": 3, "sha256": sha(b"abc")}}}
    answer = site.backend.files(run, ("../*",))["node-0"]
    assert isinstance(answer, NodeError) and answer.kind == "protocol"

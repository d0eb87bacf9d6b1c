"""The inspector by itself, on this machine: bounded tools, hashes, the workers' environment."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cluster import inspector
from cluster.inspection import INSPECTOR


def software(**options: Any) -> dict[str, Any]:
    asked = {"setup": [], "script": "", "secrets": [], "python": sys.executable, "modules": [], "programs": []}
    return inspector.software({**asked, **options})


def test_a_tool_that_hangs_is_given_up_with_its_children() -> None:
    began = time.monotonic()
    assert inspector.run(["sh", "-c", "sleep 97 & wait"], seconds=0.3) == {"timeout": 0.3}
    assert time.monotonic() - began < 5
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, timeout=10, check=True).stdout
    assert "sleep 97" not in listing.splitlines()


def test_an_absent_tool_is_told_by_name() -> None:
    assert inspector.run(["npu-smi-of-nobody"])["missing"] == "npu-smi-of-nobody"


def test_one_part_that_breaks_hides_no_other() -> None:
    request = {"parts": {"network": {}, "identity": {}}}
    done = subprocess.run([sys.executable, str(INSPECTOR), "inspect"], input=json.dumps(request), capture_output=True,
                          text=True, timeout=30, check=True)  # fmt: skip
    told = json.loads(done.stdout)
    assert told["parts"]["network"]["error"].startswith("KeyError")
    assert told["parts"]["identity"]["uid"] == os.getuid()
    assert told["received"] <= told["answered"]


def test_a_request_that_is_none_is_an_error_not_a_traceback() -> None:
    done = subprocess.run([sys.executable, str(INSPECTOR), "inspect"], input="{}", capture_output=True, text=True,
                          timeout=30, check=False)  # fmt: skip
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["kind"] == "protocol"


def test_the_environment_is_the_one_after_the_set_up_without_secrets(tmp_path: Path) -> None:
    awkward = tmp_path / "set up 'q' $(x).sh"
    awkward.write_text("read -r line\necho noise\nexport HCCL_BUFFSIZE='4 0' OTHER=1\n")
    script = ': "${HCCL_TOKEN:?is missing}"\nexport MS_A="$HCCL_BUFFSIZE" GLOO_B=$\'x\\ny\'\n'
    told = software(setup=[str(awkward)], script=script, secrets=["HCCL_TOKEN"])
    assert told["problem"] == ""
    seen = told["environment"]
    assert (seen["HCCL_BUFFSIZE"], seen["MS_A"], seen["GLOO_B"]) == ("4 0", "4 0", "x\ny")
    assert not {"OTHER", "HCCL_TOKEN", "PATH"} & set(seen)


@pytest.mark.parametrize(
    ("content", "word"), [("exit 3\n", "exit 3"), ("echo dear >&2; exit 1\n", "dear"), (None, "cannot be read")]
)
def test_a_set_up_that_fails_says_why(tmp_path: Path, content: str | None, word: str) -> None:
    file = tmp_path / "setup.sh"
    if content is not None:
        file.write_text(content)
    assert word in software(setup=[str(file)])["problem"]


def test_missing_modules_and_programs_are_none() -> None:
    told = software(modules=["json", "no_such_module"], programs=["bash", "no-such-program"])
    assert told["modules"]["no_such_module"] is None and told["modules"]["json"] is not None
    assert told["programs"]["no-such-program"] is None and told["programs"]["bash"]
    assert software(python="/no/such/python")["python"]["path"] is None


def test_hashes_see_contents_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "x.py").write_text("x = 1\n")
    (tmp_path / "b" / "__pycache__").mkdir()
    (tmp_path / "b" / "__pycache__" / "x.pyc").write_text("cached")
    hashes = [inspector.tree_hash([("content", str(tmp_path / name))]) for name in ("a", "b")]
    assert hashes[0] == hashes[1]
    (tmp_path / "b" / "sub" / "x.py").write_text("x = 2\n")
    assert inspector.tree_hash([("content", str(tmp_path / "b"))]) != hashes[0]


def test_large_files_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspector, "WHOLE", 1 << 20)
    monkeypatch.setattr(inspector, "SAMPLE", 1 << 10)
    file = tmp_path / "weights"
    file.write_bytes(bytes(2 << 20))
    before = inspector.look_at(str(file))
    assert before["hash"].startswith("~") and before["size"] == 2 << 20
    with open(file, "r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        opened.write(b"x")
    assert inspector.look_at(str(file))["hash"] != before["hash"]
    assert inspector.look_at(str(tmp_path / "none"))["kind"] == ""


def test_write_speed_is_bounded_and_leaves_nothing(tmp_path: Path) -> None:
    began = time.monotonic()
    told = inspector.write_test(str(tmp_path), 0.2, 16 << 20)
    assert 0 < told["bytes"] <= 16 << 20 and time.monotonic() - began < 10
    assert list(tmp_path.iterdir()) == []
    assert inspector.write_test("/proc", 0.1, 1 << 20)["problem"]


def test_ports_and_ways() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        told = inspector.network({"address": "127.0.0.1", "master": "127.0.0.1", "port": port})
        assert told["port"] and not told["address"] and not told["route"]
    assert inspector.bind_problem("192.0.2.1", 0)
    assert inspector.connect_problem("127.0.0.1", port) == "", "a refusal has reached it"


def test_processes_with_a_tag_are_told_with_their_run(tmp_path: Path) -> None:
    env = {**os.environ, "OSTRAIN_RUN": "toy-abcdef", "OSTRAIN_AGENT_ID": "1:1", "OSTRAIN_RUN_DIR": str(tmp_path)}
    with subprocess.Popen(["sleep", "60"], env=env) as child:
        try:
            end = time.monotonic() + 10  # until it has become sleep
            while time.monotonic() < end:
                found = [one for one in inspector.processes({})["tagged"] if one["pid"] == child.pid]
                if found and found[0]["command"].startswith("sleep"):
                    break
        finally:
            child.kill()
    assert (found[0]["run"], found[0]["agent_alive"], found[0]["here"]) == ("toy-abcdef", False, False)

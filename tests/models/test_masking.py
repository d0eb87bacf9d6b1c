"""Events and faults hold no secret."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from models.events import Reporter

KEY = '-----BEGIN-----\nfirst "half"\n-----END-----'


def test_events_are_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSTRAIN_SECRETS", "TOKEN KEY SHORT GONE")
    monkeypatch.setenv("TOKEN", "hf_S3cret")
    monkeypatch.setenv("KEY", KEY)
    monkeypatch.setenv("SHORT", "a")
    Reporter(tmp_path, 0).event("seen", url="https://hf_S3cret@host", nested=[{"a": KEY}], step=3, said=repr(KEY))
    told = json.loads((tmp_path / "events.jsonl").read_text())
    assert (told["url"], told["step"]) == ("https://[secret TOKEN]@host", 3)
    assert told["nested"] == [{"a": "[secret KEY]"}] and told["said"] == "'[secret KEY]'"


def test_faults_are_masked(tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from models.events import Log; from models.faults import die\n"
        "try: raise ValueError('no access with ' + os.environ['TOKEN'])\n"
        "except ValueError as error: die(error, Path('.'), 2, 7, Log())"
    )
    environment = {"PATH": "/usr/bin", "PYTHONPATH": str(Path(__file__).parents[2]), "TOKEN": "hf_S3cret"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**environment, "OSTRAIN_SECRETS": "TOKEN"}, cwd=tmp_path, timeout=60,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    text = (tmp_path / "faults" / "attempt-1" / "rank-2.json").read_text()
    assert "hf_S3cret" not in text and json.loads(text)["what"] == "ValueError: no access with [secret TOKEN]"

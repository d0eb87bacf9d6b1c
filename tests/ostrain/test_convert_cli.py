"""``ostrain convert``: a child process does it, the exit code and the report are the command's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from models.convert.names import KINDS as PAYLOAD_KINDS
from ostrain.__main__ import main
from ostrain.cli.convert import KINDS

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden"


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["ostrain", "convert", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(main())
    return int(ended.value.code or 0)


def test_kinds_are_those_of_the_payload() -> None:
    assert KINDS == PAYLOAD_KINDS


def test_converts_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source, target = GOLDEN / "06b_iddpm_v1_1" / "weights.safetensors", tmp_path / "x.ckpt"
    assert run(monkeypatch, source, target, "--to", "mindspore", "--json") == 0
    report = json.loads(capfd.readouterr().out)
    assert (report["kind"], report["whole"], report["written"]) == ("stdit2", True, True)
    assert run(monkeypatch, target, tmp_path / "back.safetensors") == 0
    assert "renamed" in capfd.readouterr().out
    assert load_file(tmp_path / "back.safetensors").keys() == load_file(source).keys()


def test_errors_are_for_people(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.pth").write_text("not a checkpoint at all")
    assert run(monkeypatch, tmp_path / "x.pth", tmp_path / "y.safetensors") == 1
    told = capfd.readouterr().err
    assert told.startswith("error: weights cannot be read") and "Traceback" not in told and "next:" in told
    assert run(monkeypatch, tmp_path / "x.pth", tmp_path / "y.bin") == 2

"""docs/ranktables.md shows what the commands really print."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.ostrain.ranktable_helpers import GOLDEN, runner

PAGE = Path(__file__).parents[2] / "docs" / "ranktables.md"


def test_the_page_shows_real_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("facts", "facts-a3"):
        shutil.copytree(GOLDEN / name, tmp_path / name)
    shutil.copytree(GOLDEN / "facts", tmp_path / "facts-today")
    busy = tmp_path / "facts-today" / "node-1.txt"
    text = busy.read_text().replace("ipaddr:10.20.1.13\nnetmask:255.255.0.0", "hccn_tool is busy, please try again")
    busy.write_text(text.replace("address_3=10.20.1.13\n", ""))
    shutil.copy(GOLDEN / "hccl_tools" / "hccl_2s_16p.json", tmp_path / "merged.json")
    shutil.copy(GOLDEN / "samples" / "modelarts-group.json", tmp_path / "jobstart_hccl.json")
    shutil.copy(GOLDEN / "broken" / "duplicate_ip.json", tmp_path / "hccl_2s_8p.json")
    monkeypatch.chdir(tmp_path)
    command = runner(monkeypatch, capsys)
    blocks = re.findall(r"```console\n\$ ostrain ranktable (.*)\n((?:.*\n)*?)```", PAGE.read_text())
    assert len(blocks) >= 8
    for words, shown in blocks:
        said = command(*shlex.split(words))
        assert (said.out + said.err).rstrip() == shown.rstrip(), words

"""Running ``ostrain ranktable`` as the program does, on tables and facts of tests/golden/ranktables."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ostrain.__main__ import main

GOLDEN = Path(__file__).parents[1] / "golden" / "ranktables"
SAMPLES = GOLDEN / "samples"


@dataclass
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Said]


def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """A function that runs a command; no fault of ours is ever an answer."""

    def command(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["ostrain", "ranktable", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        assert "a fault in ostrain" not in told.err and "Traceback" not in told.err, told.err
        return Said(int(ended.value.code or 0), told.out, told.err)

    return command

"""The supervisor's journal: appended to, cut off by kills, read by others."""

from __future__ import annotations

from pathlib import Path

import pytest

from ostrain.supervisor.journal import Journal, read_journal


def test_entries_come_back_and_a_cut_off_line_is_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert read_journal("run-1") == []
    journal = Journal("run-1")
    first = journal.write(1, "detected", node="n ü", rank=3, reason="hung", detail="no step\nfor 20 s", step=7)
    with open(journal.path, "ab") as file:
        file.write(b'{"time": 1.0, "attempt": 1, "eve')
    assert read_journal("run-1") == [first]
    second = journal.write(2, "restarted")
    assert read_journal("run-1") == [first, second]
    assert (first.more, second.node, second.rank) == ({"step": 7}, None, None)
    assert journal.path.stat().st_mode & 0o077 == 0


def test_unknown_events_are_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="no event"):
        Journal("run-1").write(1, "exploded")

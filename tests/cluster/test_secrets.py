"""Secrets come from the environment or a private file, or there is a clear error."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.secrets import resolve_secrets, variable_of
from ostrain.errors import OstrainError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = tmp_path / "ostrain" / "secrets"
    path.mkdir(parents=True)
    return path


def test_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert variable_of("hf-token.v2") == "OSTRAIN_SECRET_HF_TOKEN_V2"
    monkeypatch.setenv("OSTRAIN_SECRET_HF_TOKEN", "a b\n")
    assert resolve_secrets({"HF_TOKEN": "hf_token"}) == {"HF_TOKEN": "a b\n"}


def test_from_a_private_file(folder: Path) -> None:
    (folder / "hf_token").write_text("a b \n\n")
    (folder / "hf_token").chmod(0o600)
    assert resolve_secrets({"X": "hf_token"}) == {"X": "a b \n"}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_file_others_can_read_is_refused(folder: Path, mode: int) -> None:
    (folder / "hf_token").write_text("value")
    (folder / "hf_token").chmod(mode)
    with pytest.raises(OstrainError, match="readable by others") as caught:
        resolve_secrets({"X": "hf_token"})
    assert "chmod 600" in caught.value.next_step and "value" not in str(caught.value)


def test_every_missing_secret_is_named() -> None:
    with pytest.raises(OstrainError) as caught:
        resolve_secrets({"X": "one", "Y": "two"})
    text = str(caught.value)
    assert "no secret one" in text and "no secret two" in text and "OSTRAIN_SECRET_TWO" in text
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", ".hidden", ""])
def test_a_name_is_no_path(name: str) -> None:
    with pytest.raises(OstrainError, match="no name for a secret"):
        resolve_secrets({"X": name})

"""The file of pinned host keys: read, written, merged; a damaged one is never half believed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cluster.hosts_lock import Pin, lock_beside, merged, read_lock, write_lock
from ostrain.errors import OstrainError

KEY = "AAAAC3NzaC1lZDI1NTE5AAAAIAGkYEWzS7pVgYPVzoLRwUVQ9SLx8xO0PkSxDIJf9HW0"
A, B = Pin("10.0.0.1", "ssh-ed25519", KEY, "node-0"), Pin("[10.0.0.2]:2222", "ssh-ed25519", KEY, "node-1")


def test_written_and_read_again(tmp_path: Path) -> None:
    file = lock_beside(str(tmp_path / "cluster.yaml"))
    assert file == tmp_path / "hosts.lock" and read_lock(file) == [] and lock_beside("") is None
    write_lock(file, [A, B])
    assert read_lock(file) == [A, B]
    assert file.read_text().startswith("# ")


def test_ssh_reads_it_too(tmp_path: Path) -> None:
    file = tmp_path / "hosts.lock"
    write_lock(file, [A, B])
    found = subprocess.run(["ssh-keygen", "-F", "[10.0.0.2]:2222", "-f", str(file)], capture_output=True, text=True,
                           timeout=10, check=True)  # fmt: skip
    assert KEY in found.stdout
    shown = subprocess.run(["ssh-keygen", "-lf", str(file)], capture_output=True, text=True, timeout=10, check=True)
    assert A.fingerprint in shown.stdout


def test_keys_of_hosts_are_replaced_and_others_stay() -> None:
    new = Pin("10.0.0.1", "ssh-rsa", KEY, "node-0")
    assert merged([A, B], ["10.0.0.1"], [new]) == [B, new]


@pytest.mark.parametrize("line", ["10.0.0.1 ssh-ed25519", "10.0.0.1 ssh-ed25519 not*base64"])
def test_a_damaged_file_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    file = tmp_path / "hosts.lock"
    file.write_text(f"# comment\n\n{line}\n")
    with pytest.raises(OstrainError) as caught:
        read_lock(file)
    assert caught.value.where == f"{file}:3" and caught.value.exit_code == 4


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(OstrainError, match="cannot be pinned"):
        write_lock(tmp_path / "taken" / "hosts.lock", [A])

"""The folder of checkpoints: ``step-N/`` appears whole or not at all. docs/checkpoints.md tells the protocol."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.checkpoint.tensors import Source, write_tensors
from models.files import sync_directory

MANIFEST = "manifest.json"
STATE = "state.json"
FORMAT = 1
_CHUNK = 4 << 20


@dataclass(frozen=True)
class Found:
    """The newest complete checkpoint (None where there is none), and what is wrong with newer ones."""

    path: Path | None
    step: int
    problems: tuple[str, ...]


def write(folder: Path, step: int, tensors: Mapping[str, dict[str, Source]], state: dict[str, Any]) -> Path:
    """Writes ``folder/step-N`` from safetensors files by name and the run's state. OSError where it cannot.

    Everything goes into a hidden folder beside it, each file synced, the manifest with sizes and hashes last; then one
    rename makes it a checkpoint. Whatever interrupts this, checkpoints written before stay as they were; on an error
    the hidden folder is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step}"
    temporary = folder / f".step-{step}.writing"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        files = {}
        for name, sources in tensors.items():
            size, digest = write_tensors(temporary / name, sources)
            files[name] = {"size": size, "sha256": digest}
        text = _json(state)
        _write_synced(temporary / STATE, text)
        files[STATE] = {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
        _write_synced(temporary / MANIFEST, _json({"format": FORMAT, "step": step, "files": files}))
        sync_directory(temporary)
        _replace(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(folder)
    return final


def _replace(temporary: Path, final: Path) -> None:
    """Renames ``temporary`` to ``final``. An older folder of that name steps aside; ``recover`` knows both names."""
    aside = final.with_name(f".{final.name}.replaced")
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(final, aside)
    os.rename(temporary, final)
    shutil.rmtree(aside, ignore_errors=True)


def recover(folder: Path) -> list[str]:
    """Puts the folder in order after a crash; names of what was removed. For the one process that writes there."""
    if not folder.is_dir():
        return []
    removed = []
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(r"\.(step-\d+)\.(writing|replaced|removed)", path.name)
        if match is None:
            continue
        if match[2] == "replaced" and not (folder / match[1]).exists():
            os.rename(path, folder / match[1])
            continue
        shutil.rmtree(path, ignore_errors=True)
        removed.append(path.name)
    return removed


def verify(path: Path) -> str:
    """What is wrong with a checkpoint, read from end to end; empty when it is whole."""
    problem, manifest = _read_manifest(path)
    if problem:
        return problem
    for name, expected in sorted(manifest["files"].items()):
        digest = hashlib.sha256()
        try:
            with (path / name).open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        if digest.hexdigest() != expected["sha256"]:
            return f"{name} does not have the content its manifest says"
    return ""


def newest_complete(folder: Path) -> Found:
    """Looks from the newest checkpoint to the oldest for one that is whole, hashes included."""
    problems = []
    for step in sorted(steps(folder), reverse=True):
        path = folder / f"step-{step}"
        problem = verify(path)
        if not problem:
            return Found(path, step, tuple(problems))
        problems.append(f"{path}: {problem}")
    return Found(None, 0, tuple(problems))


def steps(folder: Path) -> list[int]:
    """Steps of all folders ``step-N``, whole or not."""
    if not folder.is_dir():
        return []
    matches = (re.fullmatch(r"step-(\d+)", path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def prune(folder: Path, keep_last: int) -> list[int]:
    """Removes all but the ``keep_last`` newest checkpoints that look whole (manifest and sizes); steps removed.

    Broken ones do not count, and go when they are older than the oldest that is kept.
    """
    whole = [step for step in steps(folder) if not _read_manifest(folder / f"step-{step}")[0]]
    if len(whole) <= keep_last:
        return []
    oldest = whole[-keep_last]
    removed = [step for step in steps(folder) if step < oldest]
    for step in removed:
        # Out of sight first: a folder half removed is never taken for a checkpoint.
        aside = folder / f".step-{step}.removed"
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(folder / f"step-{step}", aside)
        shutil.rmtree(aside, ignore_errors=True)
    return removed


def _read_manifest(path: Path) -> tuple[str, dict[str, Any]]:
    """(what is wrong with names and sizes, manifest)."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT:
            return f"its format {manifest['format']} is not known to this version", {}
        if f"step-{manifest['step']}" != path.name:
            return f"its manifest is that of step {manifest['step']}", {}
        expected = {name: int(facts["size"]) for name, facts in manifest["files"].items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing", {}
    except OSError as error:
        return f"{MANIFEST} cannot be read: {error.strerror}", {}
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged", {}
    for name, size in expected.items():
        try:
            actual = (path / name).stat().st_size
        except OSError:
            return f"{name} is missing", {}
        if actual != size:
            return f"{name} has {actual} bytes instead of {size}", {}
    return "", manifest


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())

"""One node's folder of checkpoints: what is in it, and every change of it. Needs no numpy.

``step-N/`` is a checkpoint, ``.step-N.writing`` one being written (its manifest comes last),
``.step-N.replaced`` an older one of the same step that makes way, ``.step-N.removed`` one being deleted, and
``step-N.broken`` one that a resume has passed over.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from models.checkpoint.manifest import MANIFEST, STATE, BadManifest, Manifest
from models.files import sync_directory

_CHUNK = 4 << 20
_STEP = re.compile(r"step-(\d+)")
_WRITING = re.compile(r"\.step-(\d+)\.writing")
_LEFT_OVER = re.compile(r"\.(step-\d+)\.(replaced|removed)|\.here-[0-9a-f]+")


@dataclass(frozen=True)
class Local:
    """A step as one node has it. present: shards (by number) of the right size; problems: what is wrong here.

    ``manifest`` is None where it is missing or damaged, or where the caller knows it by its ``digest`` alone.
    """

    step: int
    name: str
    digest: str
    time: float
    shards: int
    present: tuple[int, ...]
    problems: tuple[str, ...]
    manifest: Manifest | None

    @property
    def committed(self) -> bool:
        return not self.name.startswith(".")


def step_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step}"


def writing_path(folder: Path, step: int) -> Path:
    return folder / f".step-{step}.writing"


def broken_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step}.broken"


def steps(folder: Path) -> list[int]:
    """Steps of all folders ``step-N``, whole or not."""
    return sorted(int(match[1]) for match in map(_STEP.fullmatch, _names(folder)) if match)


def survey(folder: Path) -> list[Local]:
    """Every step of the folder, committed or being written, by names and sizes; oldest first."""
    found = []
    for name in _names(folder):
        if match := _STEP.fullmatch(name) or _WRITING.fullmatch(name):
            found.append(look(folder / name, int(match[1])))
    return sorted(found, key=lambda local: (local.step, local.name))


def look(path: Path, step: int) -> Local:
    """One step's folder: its manifest, and which of the shards listed there it has."""
    manifest, problem = read_manifest(path, step)
    if manifest is None:
        return Local(step, path.name, "", 0.0, 0, (), (problem,), None)
    return examine(path, manifest)


def read_manifest(path: Path, step: int) -> tuple[Manifest | None, str]:
    """(the manifest in a step's folder, or None and what is wrong with it)."""
    try:
        manifest = Manifest.decode((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        return None, f"{MANIFEST} is missing"
    except OSError as error:
        return None, f"{MANIFEST} cannot be read: {error.strerror}"
    except BadManifest as error:
        return None, f"{MANIFEST} {error}"
    if manifest.step != step:
        return None, f"{MANIFEST} is that of step {manifest.step}"
    return manifest, ""


def examine(path: Path, manifest: Manifest) -> Local:
    """Which of the manifest's files are at ``path``, as far as sizes tell. Shards may well be on other nodes."""
    present, problems = [], []
    for number, shard in enumerate(manifest.shards):
        problem = size_problem(path / shard.file, shard.size)
        if not problem:
            present.append(number)
        elif (path / shard.file).exists():
            problems.append(problem)
    state_problem = size_problem(path / STATE, manifest.state_size)
    if state_problem:
        problems.append(state_problem)
    return Local(
        manifest.step, path.name, manifest.digest, manifest.time, len(manifest.shards), tuple(present), tuple(problems),
        manifest,
    )  # fmt: skip


def size_problem(path: Path, size: int) -> str:
    """What is wrong with a file that must have ``size`` bytes, as far as its size tells; empty if nothing."""
    try:
        actual = path.stat().st_size
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    return "" if actual == size else f"{path.name} has {actual} bytes instead of {size}"


def content_problem(path: Path, size: int, sha256: str) -> str:
    """What is wrong with a file, read from end to end; empty if nothing."""
    problem = size_problem(path, size)
    if problem:
        return problem
    try:
        if hash_file(path) == sha256:
            return ""
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    return f"{path.name} does not have the content its manifest says"


def hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def hash_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def recover(folder: Path) -> list[str]:
    """Puts the folder in order after a crash; names of what was removed. For the one process that may write there.

    Folders being written stay: together with those of other nodes they may be a whole checkpoint.
    """
    removed = []
    for part in folder.glob("step-*/.*.part"):
        part.unlink()
    for name in sorted(_names(folder)):
        path, match = folder / name, _LEFT_OVER.fullmatch(name)
        if match is None:
            continue
        if match[2] == "replaced" and not (folder / match[1]).exists():
            os.rename(path, folder / match[1])
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        removed.append(name)
    return removed


def publish(folder: Path, step: int) -> Path:
    """Makes the sealed folder of a step its checkpoint. An older one of that step makes way; ``recover`` knows how."""
    final, aside = step_path(folder, step), folder / f".step-{step}.replaced"
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(final, aside)
    os.rename(writing_path(folder, step), final)
    sync_directory(folder)
    sync_directory(folder.parent)  # the first one may have come with the folder itself
    # What it replaces is of no use any more; leftovers of a failed removal go with the next recovery.
    shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(broken_path(folder, step), ignore_errors=True)
    return final


def set_aside(folder: Path, step: int) -> Path:
    """Renames a step that cannot be used to ``step-N.broken``: kept for people, not taken for a checkpoint."""
    target = broken_path(folder, step)
    shutil.rmtree(target, ignore_errors=True)
    os.rename(step_path(folder, step), target)
    sync_directory(folder)
    return target


def remove(folder: Path, doomed: Iterable[int]) -> None:
    """Deletes steps. Out of sight first: a folder half removed is never taken for a checkpoint."""
    asides = []
    for step in doomed:
        path, aside = step_path(folder, step), folder / f".step-{step}.removed"
        if path.exists():
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(path, aside)
            asides.append(aside)
        shutil.rmtree(broken_path(folder, step), ignore_errors=True)
    for aside in asides:
        # What is left of it here goes with the next recovery.
        shutil.rmtree(aside, ignore_errors=True)


def broken_steps(folder: Path) -> list[int]:
    matches = (re.fullmatch(r"step-(\d+)\.broken", name) for name in _names(folder))
    return sorted(int(match[1]) for match in matches if match)


def write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _names(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []

"""Hands the files of a run directory over to a folder that is copied to, or is, an object store; and brings them back.

Standard library only, Python 3.8 or newer: it goes into containers with ``modelarts_start``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator  # only annotations use it; Python 3.8 has it, too

# Handed over by what has been added to them; everything else as a whole.
GROWING = (".log", ".jsonl")
# Of no use elsewhere, or of this node alone.
KEPT_BACK = ("files", "agent/lock", "agent/ballast", "agent/strays.json", "env.sh")
CHECKPOINTS = "checkpoints/"


def copy_whole(source: str, target: str) -> None:
    """Copy under a temporary name, then rename. A link instead of a copy where both are on one disk and what is there
    never changes (checkpoints)."""
    folder, name = os.path.split(target)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, ".tmp-" + name)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    linked = False
    if name.endswith(".safetensors"):
        try:
            os.link(source, temporary)
            linked = True
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES):
                raise
    if not linked:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def append_rest(source: str, target: str, size: int) -> None:
    """Bring ``target`` up to the first ``size`` bytes of ``source``."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    there = os.path.getsize(target) if os.path.exists(target) else 0
    if there > size:
        copy_whole(source, target)
        return
    with open(source, "rb") as old, open(target, "ab") as new:
        old.seek(there)
        left = size - there
        while left > 0:
            data = old.read(min(left, 1 << 20))
            if not data:
                return
            new.write(data)
            left -= len(data)


class Mirror:
    """One folder's files, kept the same in another: checkpoints, others, or both. Passes never raise: a full or broken
    target is told and tried again, the training goes on."""

    def __init__(self, source: str, target: str, *, checkpoints: bool = False, others: bool = False) -> None:
        self.source, self.target = source, target
        self.checkpoints, self.others = checkpoints, others
        self.seen: dict[str, tuple[int, int]] = {}
        self.sizes: dict[str, int] = {}
        self.problem = ""

    def names(self) -> Iterator[str]:
        """Files of the source, relative; of a checkpoint the manifest last, unfinished ones not at all."""
        for folder, folders, files in os.walk(self.source):
            inside = os.path.relpath(folder, self.source)
            prefix = "" if inside == "." else inside + "/"
            folders[:] = sorted(name for name in folders if not name.startswith(".") and prefix + name not in KEPT_BACK)
            if inside.startswith("checkpoints/") and "manifest.json" not in files:
                continue
            wanted = self.checkpoints if (prefix + "/").startswith(CHECKPOINTS) else self.others
            for name in sorted(files, key=lambda name: (name == "manifest.json", name)):
                if wanted and not name.startswith(".") and prefix + name not in KEPT_BACK:
                    yield prefix + name

    def bring(self, name: str) -> None:
        source, target = os.path.join(self.source, name), os.path.join(self.target, name)
        info = os.stat(source)
        now = (info.st_size, info.st_mtime_ns)
        if self.seen.get(name) == now:
            return
        if name.endswith(GROWING):
            append_rest(source, target, info.st_size)
        else:
            copy_whole(source, target)
        self.seen[name], self.sizes[name] = now, info.st_size

    def forget(self, there: set[str]) -> None:
        """Remove what the source no longer has: manifests first, so that no checkpoint looks whole that is not."""
        gone = sorted(set(self.seen) - there, key=lambda name: (not name.endswith("/manifest.json"), name))
        for name in gone:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.target, name))
            with contextlib.suppress(OSError):
                os.rmdir(os.path.dirname(os.path.join(self.target, name)))
            del self.seen[name], self.sizes[name]

    def one_pass(self) -> bool:
        """Whether everything was handed over."""
        there, problem = set(), ""
        for name in self.names():
            there.add(name)
            try:
                self.bring(name)
            except FileNotFoundError:  # it went meanwhile
                there.discard(name)
            except OSError as error:
                problem = f"{name}: {error.strerror or error}"
        try:
            self.forget(there)
        except OSError as error:
            problem = str(error)
        self.problem = problem
        return not problem


def restore(source: str, run_dir: str, attempt: int) -> bool:
    """Bring back what an earlier container of this node handed over. Logs that this attempt already has, because the
    platform restarted the job, are put aside, so that nothing overwrites them."""
    if not os.path.isdir(source):
        return False
    mirror = Mirror(source, run_dir, checkpoints=True, others=True)
    if not mirror.one_pass():
        raise OSError(mirror.problem)
    logs = os.path.join(run_dir, "logs", f"attempt-{attempt}")
    if os.path.isdir(logs):
        number = 1
        while os.path.exists(f"{logs}-restart-{number}"):
            number += 1
        os.rename(logs, f"{logs}-restart-{number}")
    return bool(mirror.seen)

"""Content-addressed archives: the code bundle and a job's files. The same content gives the same bytes."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ostrain.errors import OstrainError
from ostrain.paths import cache_dir

AGENT = Path(__file__).with_name("agent.py")
_SKIPPED = frozenset({"__pycache__", ".git", ".DS_Store"})


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    seen = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            seen.update(block)
    return seen.hexdigest()


def build_bundle() -> Path:
    """The archive of the ``models`` package and the agent, as they are now on this machine. Kept in the cache."""
    import models

    package = Path(models.__file__ or "").parent
    return _cached("bundle", [("models", package), ("agent.py", AGENT)])


def build_source(path: Path) -> Path:
    """The archive of one ``files:`` entry, a file or a folder; its single member is ``content``."""
    if not os.path.lexists(path):
        raise OstrainError(f"{path} does not exist", next_step="correct `files:` in the job", exit_code=2)
    return _cached("source", [("content", path)])


def _cached(kind: str, entries: list[tuple[str, Path]]) -> Path:
    """Build into the cache under the hash of the content. Built each time: looking is as slow as packing."""
    folder = cache_dir() / "archives"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=folder)
    except OSError as error:
        raise OstrainError("no place for archives", where=str(folder), why=str(error)) from error
    try:
        with os.fdopen(handle, "wb") as file:
            pack(entries, file)
        target = folder / f"{kind}-{hash_file(Path(temporary))}.tar.gz"
        os.replace(temporary, target)
    except OSError as error:
        _forget(temporary)
        raise OstrainError(
            "an archive could not be built", where=str(error.filename or folder), why=str(error)
        ) from error
    except OstrainError:
        _forget(temporary)
        raise
    return target


def _forget(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def pack(entries: list[tuple[str, Path]], out: io.BufferedIOBase) -> None:
    """Write a tar.gz that depends on names, modes and content alone: sorted, no times, no owners."""
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=out, mtime=0, compresslevel=6) as zipped,
        tarfile.open(fileobj=zipped, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, path in entries:
            for member, source in _members(name, path):
                _add(tar, member, source)


def _members(name: str, path: Path) -> Iterator[tuple[str, Path]]:
    """A file or folder and everything under it, sorted by name."""
    yield name, path
    if path.is_dir() and not path.is_symlink():
        for child in sorted(os.listdir(path)):
            if child not in _SKIPPED:
                yield from _members(f"{name}/{child}", path / child)


def _add(tar: tarfile.TarFile, name: str, path: Path) -> None:
    # The top of an entry may be a link to what is meant; links inside a folder are packed as links.
    info = os.stat(path) if "/" not in name else os.lstat(path)
    member = tarfile.TarInfo(name)
    member.mode = 0o755 if stat.S_ISDIR(info.st_mode) or info.st_mode & stat.S_IXUSR else 0o644
    if stat.S_ISDIR(info.st_mode):
        member.type = tarfile.DIRTYPE
        tar.addfile(member)
    elif stat.S_ISLNK(info.st_mode):
        member.type, member.linkname = tarfile.SYMTYPE, _checked_link(name, path)
        tar.addfile(member)
    elif stat.S_ISREG(info.st_mode):
        member.size = info.st_size
        with open(path, "rb") as file:
            tar.addfile(member, file)
    else:
        raise OstrainError(f"{path} is neither a file, a folder nor a link", next_step="leave it out", exit_code=2)


def _checked_link(name: str, path: Path) -> str:
    target = os.readlink(path)
    top = name.split("/")[0]
    reached = os.path.normpath(os.path.join(os.path.dirname(name), target))
    if os.path.isabs(target) or reached.split("/")[0] != top:
        raise OstrainError(
            f"the link {path} leads out of its folder",
            why=f"it points to {target}, which is not packed with it",
            next_step="replace the link by what it points to",
            exit_code=2,
        )
    return target

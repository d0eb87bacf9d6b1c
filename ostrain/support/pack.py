"""The file itself: masked texts, a manifest with their hashes, and all of it whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import tarfile
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ostrain.errors import OstrainError
from ostrain.support.masking import Masking


@dataclass(frozen=True)
class Packed:
    """What was written."""

    path: Path
    files: int
    size: int
    masked: dict[str, int]


def pack(target: Path, top: str, entries: Iterable[tuple[str, str]], masking: Masking, facts: dict[str, Any]) -> Packed:
    """Write ``target`` (tar.gz, readable by its owner alone) with every entry below the folder ``top``.

    It appears under its name when it is complete and on disk. OstrainError where it cannot be written, exists
    already, or where a secret would have stood in it.
    """
    if target.exists():
        raise OstrainError(f"{target} exists", next_step="name another file with -o, or delete it", exit_code=2)
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            count = _write(file, top, entries, masking, facts)
            file.flush()
            os.fsync(file.fileno())
        _publish(temporary, target)
    except FileExistsError:
        raise OstrainError(f"{target} exists", next_step="name another file with -o", exit_code=2) from None
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
    return Packed(target, count, target.stat().st_size, dict(masking.counts))


def _publish(temporary: str, target: Path) -> None:
    """Give the file its name. A link never replaces what somebody else has just written; where the file system knows
    no links, a rename has to do."""
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        os.rename(temporary, target)


def _unwritable(target: Path, error: OSError) -> OstrainError:
    return OstrainError(
        "the bundle cannot be written", where=str(target), why=error.strerror or str(error),
        next_step="name a file elsewhere with -o",
    )  # fmt: skip


def _write(
    file: io.BufferedIOBase, top: str, entries: Iterable[tuple[str, str]], masking: Masking, facts: dict[str, Any]
) -> int:
    listed: list[dict[str, Any]] = []
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for path, text in entries:
            data = _masked(path, text, masking)
            listed.append({"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()})
            _add(archive, f"{top}/{path}", data)
        manifest = {**facts, "masked": masking.counts, "files": listed}
        _add(archive, f"{top}/manifest.json", _masked("manifest.json", json.dumps(manifest, indent=1) + "\n", masking))
    return len(listed) + 1


def _masked(path: str, text: str, masking: Masking) -> bytes:
    """The text without secrets; a second look makes sure of the values that are known."""
    masked = masking(text)
    if not masking.clean(masked) or not masking.clean(path):
        raise OstrainError(
            "a secret could not be masked; nothing was written", where=path,
            next_step="report this; until then send the files one by one, looked through by you",
        )  # fmt: skip
    return masked.encode("utf-8", "surrogateescape")


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
    archive.addfile(entry, io.BytesIO(data))

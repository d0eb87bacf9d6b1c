"""How a worker ends when it must: what, where, why and what next in the log and in its fault file; an exit code."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

from models.events import Log, attempt
from models.exits import DISK_FULL, PayloadError
from models.files import write_atomic
from models.masking import masked

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def as_payload_error(error: BaseException) -> PayloadError | None:
    """The error people are told; None for a fault of ours, which shows its traceback."""
    if isinstance(error, PayloadError):
        return error
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return PayloadError(
            DISK_FULL,
            "no space left on the disk the run writes to",
            where=str(error.filename or os.getcwd()),
            why=error.strerror or str(error),
            next_step="free space there; the checkpoints written before are whole",
        )
    return None


def die(error: BaseException, run_dir: Path, rank: int, step: int, log: Log) -> NoReturn:
    """Reports the error and ends this process at once, whatever its threads or other ranks are doing."""
    known = as_payload_error(error)
    trace = "".join(traceback.format_exception(error))
    what = known.what if known is not None else f"{type(error).__name__}: {error}".strip()
    record = {
        "kind": known.kind if known is not None else "worker_failed",
        "what": what,
        "where": (known.where if known is not None else "") or f"rank {rank}",
        "why": known.why if known is not None else "an error in the worker itself",
        "next": known.next_step if known is not None else f"read the log of rank {rank}",
        "time": time.time(),
        "step": step,
        "traceback": trace,
    }
    # Unwinding past a collective can hang in its threads; nothing below may keep the process from ending.
    try:
        if known is None:
            log.error(trace.rstrip())
        log.error(f"error: {what}")
        for label in ("where", "why", "next"):
            if record[label]:
                log.error(f"  {label}: {record[label]}")
        path = run_dir / "faults" / f"attempt-{attempt()}" / f"rank-{rank}.json"
        write_atomic(
            path, (json.dumps(masked(record), ensure_ascii=False, indent=1) + "\n").encode("utf-8", "surrogateescape")
        )
    except OSError as problem:
        # A full disk takes no fault file either; the exit code still tells.
        print(f"fault file not written: {problem}", file=sys.stderr, flush=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(known.exit_code if known is not None else 1)

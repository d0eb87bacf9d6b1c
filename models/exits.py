"""How the payload ends when it must: exit codes by kind, and an error that says what, where, why and what next."""

from __future__ import annotations

BAD_CONFIG = 64
BAD_DATA = 65
BAD_CHECKPOINT = 66
DISK_FULL = 67
NOT_FINITE = 68

KINDS = {
    BAD_CONFIG: "bad_config",
    BAD_DATA: "bad_data",
    BAD_CHECKPOINT: "bad_checkpoint",
    DISK_FULL: "disk_full",
    NOT_FINITE: "not_finite",
}


class PayloadError(Exception):
    """An error meant for people; becomes ``faults/attempt-K/rank-N.json`` and the worker's exit code."""

    def __init__(self, exit_code: int, what: str, *, where: str = "", why: str = "", next_step: str = "") -> None:
        super().__init__(what)
        self.exit_code = exit_code
        self.what = what
        self.where = where
        self.why = why
        self.next_step = next_step

    @property
    def kind(self) -> str:
        return KINDS.get(self.exit_code, "worker_failed")

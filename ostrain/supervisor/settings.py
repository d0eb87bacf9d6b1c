"""The ``restart`` section of a job as the supervisor uses it. All times in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ostrain.supervisor.policy import LogPolicy, policies_of

HANG_TIMEOUT = 1800.0  # where a supervised job says nothing: what HCCL waits for a rank, too


@dataclass(frozen=True)
class Settings:
    """docs/jobs.md explains the keys. Built by ``Settings.of`` from a plan's ``restart``."""

    max: int = 0
    backoff: float = 5.0
    backoff_max: float = 300.0
    reset_after: float = 3600.0
    spares: int = 0
    shrink: bool = True
    min_nodes: int = 1
    hang_timeout: float = HANG_TIMEOUT
    node_timeout: float = 60.0
    start_timeout: float = 1800.0
    log_policies: tuple[LogPolicy, ...] = ()

    @classmethod
    def of(cls, restart: Mapping[str, Any]) -> Settings:
        known = {one.name for one in fields(cls)} - {"log_policies"}
        given = {key: value for key, value in restart.items() if key in known and value is not None}
        return cls(**given, log_policies=policies_of(restart))

    def wait(self, restarts: int) -> float:
        """Seconds before the next restart after ``restarts`` in a row."""
        return float(min(self.backoff_max, self.backoff * 2.0 ** min(restarts, 40)))

"""What the nodes' files and Slurm's answers together say of a run. Pure: no command, no clock.

The files of a node tell its last attempt in its agent's words. Whether that agent still lives is Slurm's to say, and
whether another attempt follows: a job waits in the queue, or was put back into it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.slurm import SlurmJob
from cluster.slurm_agent import REASONS
from ostrain.states import REASONS as TABLE

# What Slurm puts a job back into the queue for, and what agents say when it has not made up its mind yet.
_GIVEN_BACK = ("slurm_preempted", "slurm_node_fail", "agent_lost")
FINAL = ("SUCCEEDED", "FAILED", "CANCELLED")
Status = Mapping[str, Any]


@dataclass(frozen=True)
class Settling:
    """The last word to be written for nodes whose agents are gone: attempt, reason (docs/runs.md), text."""

    attempt: int
    reason: str
    what: str


def retried(service: Mapping[str, Any]) -> tuple[str, ...]:
    """Reasons after which a further attempt may help: as the plan says (docs/recovery.md), else docs/runs.md."""
    return tuple(service.get("retry") or sorted(reason.word for reason in TABLE.values() if reason.retry))


def needs_slurm(statuses: Sequence[Status], asked: int) -> bool:
    """Whether the files alone do not tell how the attempt that was submitted last, or a later one, stands."""
    states = {status["state"] if status["attempt"] >= asked else "" for status in statuses}
    return not (states == {"SUCCEEDED"} or states == {"CANCELLED"})


def settling(statuses: Sequence[Status], jobs: Sequence[SlurmJob], asked: int) -> Settling | None:
    """What nodes without a last word are to be given; None while one of the jobs lives, or none is known.

    jobs: oldest first, at least the last one. asked: the attempt that was submitted last.
    """
    if not jobs or any(job.live for job in jobs):
        return None
    told = [status for status in statuses if status["state"] in FINAL and status["attempt"] >= asked]
    if len(told) == len(statuses) and all(status["reason"] != "agent_lost" for status in told):
        return None
    begun = max((int(status["attempt"]) for status in statuses), default=0)
    last = next((job for job in reversed(jobs) if job.state != "CANCELLED" or job.hosts), jobs[-1])
    reason, what = REASONS.get(last.state, ("agent_lost", f"Slurm says {last.state}, the agent said nothing"))
    why = f": {last.why}" if last.why and last.why not in ("NonZeroExitCode", "TimeLimit", "Dependency") else ""
    if len(told) == len(statuses) and reason == "agent_lost":
        return None
    return Settling(max(begun, asked), reason, f"{what} (Slurm job {last.job}{why})")


def merged(
    statuses: Mapping[str, Status], jobs: Sequence[SlurmJob], asked: int, retry: Sequence[str], requeue: bool = False
) -> dict[str, dict[str, Any]]:
    """The nodes' statuses as people are to see them, each with ``scheduler``: what Slurm says of the run's job.

    A node of a run that waits in the queue is in state NONE, reason ``queued``, whatever its last attempt was.
    """
    live = [job for job in jobs if job.live]
    working = [job for job in live if not job.waiting]
    shown = working[0] if working else live[0] if live else jobs[-1] if jobs else None
    told: dict[str, Any] = {"live": bool(live)}
    if shown is not None:
        told |= {"scheduler": "slurm", "job": shown.job, "state": shown.state, "reason": shown.why,
                 "starts": shown.starts, "hosts": shown.hosts, "jobs": [job.job for job in live]}  # fmt: skip
    begun = max((int(status["attempt"]) for status in statuses.values()), default=0)
    ended = all(
        status["state"] in FINAL and int(status["attempt"]) >= max(begun, asked) for status in statuses.values()
    )
    back = requeue and any(status["reason"] in _GIVEN_BACK for status in statuses.values())
    another = not working or (ended and (back or len(live) > len(working)))
    queued = bool(live) and another and _goes_on(list(statuses.values()), asked, retry)
    found = {}
    for name, status in statuses.items():
        one = {**status, "scheduler": told}
        if queued:
            one |= {"state": "NONE", "reason": "queued", "attempt": max(begun, asked), "workers": []}
        elif working and int(status["attempt"]) < max(begun, asked):
            one |= {"state": "NONE", "reason": "preparing", "attempt": max(begun, asked), "fault": None, "workers": []}
        found[name] = one
    return found


def _goes_on(statuses: Sequence[Status], asked: int, retry: Sequence[str]) -> bool:
    """Whether a job that waits will start another attempt, by the last word of the nodes."""
    ended = [status for status in statuses if status["state"] in FINAL and status["attempt"] >= asked]
    if any(status["state"] == "CANCELLED" for status in ended):
        return False
    if len(ended) == len(statuses) and all(status["state"] == "SUCCEEDED" for status in ended):
        return False
    faults = [status["fault"] for status in ended if status.get("fault")]
    if not faults:
        return True
    return min(faults, key=lambda fault: float(fault["time"]))["reason"] in retry

"""One status object a node from two witnesses: what its container handed over, and the phase that ModelArts tells.

| phase | container says nothing of this attempt | container says running | container has ended |
|---|---|---|---|
| Creating, Pending | queued | preparing: the platform restarts the job | as it says |
| Running | preparing, in its own words | as it says | as it says |
| Terminating | preparing | as it says | as it says |
| Completed | succeeded, after SETTLE | succeeded, after SETTLE | as it says |
| Failed, Abnormal | service_failed, after SETTLE | service_failed, after SETTLE | as it says |
| Terminated | cancelled, else service_stopped | the same | as it says |

SETTLE: the last words of a container reach OBS some time after the job's end. Pure functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.modelarts import ENDED, Job
from ostrain.plan import LaunchPlan

Status = dict[str, Any]
SETTLE = 60.0  # seconds after a job's end in which a container's last words are waited for
FINAL = ("SUCCEEDED", "FAILED", "CANCELLED")
_WAITING = ("Creating", "Pending")


@dataclass(frozen=True)
class Attempt:
    """What is known of the newest attempt. job: None while its creation is unclear. cancelled: a cancel was asked for.

    created: seconds since the epoch of the request, by the client that sent it.
    """

    number: int
    created: float
    job: Job | None
    cancelled: bool = False


def merged(
    plan: LaunchPlan, attempt: Attempt, records: Mapping[str, Mapping[str, Any]], now: float
) -> dict[str, Status]:
    """The status of every node. records: node -> its ``status.json``, where it has one."""
    restarts = bool(plan.service.get("auto_restart"))
    return {node.name: _of(node.name, attempt, records.get(node.name) or {}, now, restarts) for node in plan.nodes}


def _of(node: str, attempt: Attempt, record: Mapping[str, Any], now: float, restarts: bool) -> Status:
    phase = attempt.job.phase if attempt.job is not None else "Creating"
    own = record if record.get("attempt") == attempt.number else {}
    said = own.get("status") if isinstance(own.get("status"), dict) else None
    # Clocks of a cloud are kept equal: the age of what was handed over must not count as a difference of clocks.
    told = {**_blank(node, attempt.number), **(said or {}), "node": node, "attempt": attempt.number, "time": now}
    told["scheduler"] = {
        "live": attempt.job is None or attempt.job.phase not in ENDED,
        "scheduler": "modelarts",
        "job": attempt.job.id if attempt.job is not None else "",
        "state": phase,
        "reason": "" if phase == "Running" and said else _waits(phase, own),
    }
    if said is not None and told["state"] in FINAL:
        return _last_word(told, attempt, restarts)
    if phase in _WAITING:
        return {**told, "state": "NONE", "reason": "queued" if said is None else "preparing", "workers": []}
    if phase in ("Running", "Terminating"):
        return told
    return {**told, **_ended(node, attempt, now)}


def _last_word(told: Status, attempt: Attempt, restarts: bool) -> Status:
    """A container's last word is that of the attempt, unless the platform goes on or it was the platform's doing."""
    live = bool(told["scheduler"]["live"])
    if live and told["state"] != "SUCCEEDED" and not attempt.cancelled and (restarts or told["state"] == "CANCELLED"):
        return {**told, "state": "RUNNING", "reason": "running", "fault": None}
    if told["state"] == "CANCELLED" and not attempt.cancelled:
        return {**told, "reason": "service_stopped"}
    return told


def _waits(phase: str, own: Mapping[str, Any]) -> str:
    return str(own.get("phase") or phase)


def _blank(node: str, attempt: int) -> Status:
    """A node that has not begun the attempt, in the agent's words."""
    return {
        "node": node, "attempt": attempt, "state": "NONE", "reason": "preparing",
        "agent": {"alive": False, "pid": None}, "fault": None, "workers": [], "progress": None, "checkpoints": [],
        "heartbeat": {},
    }  # fmt: skip


def _ended(node: str, attempt: Attempt, now: float) -> Status:
    """A node whose container ended without a last word, by the job's phase."""
    job = attempt.job
    assert job is not None  # a phase beyond Creating is a job's
    if job.phase == "Terminated":
        return {"state": "CANCELLED", "reason": "cancelled" if attempt.cancelled else "service_stopped"}
    if now - (job.ended or attempt.created) < SETTLE:
        return {"state": "RUNNING", "reason": "running"}
    if job.phase == "Completed":
        return {"state": "SUCCEEDED", "reason": "done", "fault": None}
    return {"state": "FAILED", "reason": "service_failed", "fault": _fault(node, attempt, job)}


def _fault(node: str, attempt: Attempt, job: Job) -> dict[str, Any]:
    number = node.rpartition("-")[2]
    end = next((task for task in job.tasks if task.task.rpartition("-")[2] == number), None)
    what = f"ModelArts ended job {job.id}: {job.phase}"
    why = f"{end.task}: {end.message}".strip(": ") if end is not None else ""
    told = {"what": what, "where": f"node {node}", "why": why, "next": "ostrain logs RUN --source service"}
    return {
        "rank": None, "pid": None, "exit_code": end.exit_code if end is not None else None, "signal": None,
        "time": job.ended or attempt.created, "reason": "service_failed",
        "log": f"logs/attempt-{attempt.number}/service.log", "tail": [], "message": told,
    }  # fmt: skip

"""States, reasons and exit codes of a run, as one table. ``docs/runs.md`` shows it; a test keeps the two equal."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum


class ExitCode(IntEnum):
    """Exit codes of every ``ostrain`` command."""

    OK = 0
    RUN_FAILED = 1
    USAGE = 2
    PREFLIGHT = 3
    UNREACHABLE = 4
    CANCELLED = 5
    HUNG = 6
    SURVIVORS = 7
    INTERNAL = 70
    INTERRUPTED = 130


class State(str, Enum):
    """States of a run and of an attempt."""

    PREPARING = "PREPARING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def final(self) -> bool:
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


@dataclass(frozen=True)
class Reason:
    """Why a run is in its state. ``retry`` says whether starting again unchanged can help."""

    word: str
    state: State
    exit_code: ExitCode
    retry: bool
    meaning: str
    next_step: str


_TABLE = (
    Reason("preparing", State.PREPARING, ExitCode.OK, False, "files are on their way to the nodes", "wait"),
    Reason(
        "recovering",
        State.PREPARING,
        ExitCode.OK,
        False,
        "a fault was found; the supervisor starts the next attempt",
        "ostrain status RUN",
    ),
    Reason(
        "queued", State.PREPARING, ExitCode.OK, False, "waits in the scheduler's queue", "wait, or ostrain cancel RUN"
    ),
    Reason("running", State.RUNNING, ExitCode.OK, False, "workers run on every node", "ostrain logs -f RUN"),
    Reason(
        "done", State.SUCCEEDED, ExitCode.OK, False, "every worker of every node ended with 0", "ostrain status RUN"
    ),
    Reason(
        "worker_killed", State.FAILED, ExitCode.RUN_FAILED, True, "a worker ended by a signal", "ostrain resume RUN"
    ),
    Reason(
        "worker_failed",
        State.FAILED,
        ExitCode.RUN_FAILED,
        False,
        "a worker ended with an error of its own",
        "ostrain logs RUN --rank R",
    ),
    Reason(
        "bad_config",
        State.FAILED,
        ExitCode.RUN_FAILED,
        False,
        "the payload refused its configuration (worker exit 64)",
        "correct the job, submit again",
    ),
    Reason(
        "bad_data",
        State.FAILED,
        ExitCode.RUN_FAILED,
        False,
        "annotations, clips or embeddings are missing or unreadable (worker exit 65)",
        "correct the data, ostrain resume RUN",
    ),
    Reason(
        "bad_checkpoint",
        State.FAILED,
        ExitCode.RUN_FAILED,
        False,
        "weights or a checkpoint cannot be loaded (worker exit 66)",
        "name another checkpoint, ostrain resume RUN",
    ),
    Reason(
        "disk_full",
        State.FAILED,
        ExitCode.RUN_FAILED,
        False,
        "no space left where the run writes (worker exit 67)",
        "free space, ostrain resume RUN",
    ),
    Reason(
        "not_finite",
        State.FAILED,
        ExitCode.RUN_FAILED,
        False,
        "loss or gradients stopped being finite (worker exit 68)",
        "lower the learning rate, ostrain resume RUN",
    ),
    Reason(
        "launcher_failed",
        State.FAILED,
        ExitCode.RUN_FAILED,
        True,
        "the launcher ended with an error though no worker did",
        "ostrain logs RUN",
    ),
    Reason(
        "launcher_killed",
        State.FAILED,
        ExitCode.RUN_FAILED,
        True,
        "the launcher ended by a signal",
        "ostrain resume RUN",
    ),
    Reason(
        "agent_lost",
        State.FAILED,
        ExitCode.RUN_FAILED,
        True,
        "the node agent died, the kernel ended its workers",
        "ostrain resume RUN",
    ),
    Reason(
        "node_rebooted",
        State.FAILED,
        ExitCode.RUN_FAILED,
        True,
        "the node started anew under the run",
        "ostrain resume RUN",
    ),
    Reason(
        "node_lost",
        State.FAILED,
        ExitCode.RUN_FAILED,
        True,
        "a node stopped answering and the run stood still",
        "ostrain resume RUN once it answers, or let restart.spares replace it",
    ),
    Reason(
        "hung",
        State.FAILED,
        ExitCode.HUNG,
        True,
        "no rank made a step for too long; it was ended",
        "ostrain why RUN, then ostrain resume RUN",
    ),
    Reason(
        "peer_failed",
        State.FAILED,
        ExitCode.RUN_FAILED,
        True,
        "ended here because another node had failed",
        "see the first fault",
    ),
    Reason(
        "slurm_timeout",
        State.FAILED,
        ExitCode.RUN_FAILED,
        True,
        "the time limit of the Slurm job was reached",
        "ostrain resume RUN",
    ),
    Reason(
        "slurm_preempted",
        State.FAILED,
        ExitCode.RUN_FAILED,
        True,
        "Slurm took the nodes away: preemption or requeue",
        "ostrain resume RUN",
    ),
    Reason(
        "slurm_node_fail",
        State.FAILED,
        ExitCode.RUN_FAILED,
        True,
        "Slurm lost a node of the job",
        "ostrain resume RUN",
    ),
    Reason(
        "service_failed",
        State.FAILED,
        ExitCode.RUN_FAILED,
        True,
        "the service ended the job, or a container of it before the agent could say why",
        "ostrain logs RUN --source service",
    ),
    Reason(
        "service_stopped",
        State.CANCELLED,
        ExitCode.CANCELLED,
        False,
        "ended in the service's console or at its longest running time",
        "ostrain resume RUN",
    ),
    Reason(
        "superseded",
        State.FAILED,
        ExitCode.RUN_FAILED,
        True,
        "ended here to make way for the next attempt",
        "see the first fault",
    ),
    Reason(
        "start_failed",
        State.FAILED,
        ExitCode.RUN_FAILED,
        True,
        "an agent or launcher could not be started",
        "ostrain resume RUN",
    ),
    Reason("cancelled", State.CANCELLED, ExitCode.CANCELLED, False, "ended by ostrain cancel", "ostrain resume RUN"),
    Reason(
        "survivors",
        State.CANCELLED,
        ExitCode.SURVIVORS,
        False,
        "cancelled, but processes outlived SIGKILL",
        "ostrain cancel RUN again, or reboot the node",
    ),
)

REASONS: dict[str, Reason] = {reason.word: reason for reason in _TABLE}

# Exit codes by which the payload tells its kind of failure (models/exits.py has the same numbers; a test compares).
WORKER_EXITS: dict[int, str] = {
    64: "bad_config",
    65: "bad_data",
    66: "bad_checkpoint",
    67: "disk_full",
    68: "not_finite",
}


EXIT_MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "done as asked; for `status`: runs or has succeeded",
    ExitCode.RUN_FAILED: "the run failed",
    ExitCode.USAGE: "the command line, a job, an inventory or a recipe is wrong; nothing was started",
    ExitCode.PREFLIGHT: "a node lacks something (Python, MindSpore, disk, port, device); nothing was started",
    ExitCode.UNREACHABLE: "a node cannot be reached, its host key is unknown or has changed, or login was refused",
    ExitCode.CANCELLED: "the run was cancelled",
    ExitCode.HUNG: "the run was ended because it hung",
    ExitCode.SURVIVORS: "processes outlived SIGKILL",
    ExitCode.INTERNAL: "a fault in ostrain itself",
    ExitCode.INTERRUPTED: "this command was interrupted; the run goes on",
}


def reasons_table() -> str:
    """The table of docs/runs.md."""
    rows = ["| reason | state | exit | retry | meaning | next |", "|---|---|---|---|---|---|"]
    for reason in _TABLE:
        retry = "yes" if reason.retry else "no"
        rows.append(
            f"| {reason.word} | {reason.state.value} | {int(reason.exit_code)} | {retry} | {reason.meaning} "
            f"| {reason.next_step} |"
        )
    return "\n".join(rows)


def exits_table() -> str:
    """The other table of docs/runs.md."""
    rows = ["| exit | name | meaning |", "|---|---|---|"]
    return "\n".join(rows + [f"| {int(code)} | {code.name} | {text} |" for code, text in EXIT_MEANINGS.items()])
